"""Delete ended jobs, whose payloads, results and steps no quota counts.

- Queueing a job deletes those of its version and kind that do not fit beside the newest into `ENDED_CHARACTERS`, those
  of campaigns aside: long results go, however fast a namespace's own worker ends them, and many short ones stay.
- All go `ENDED_RETENTION` after they ended (`adapter gc`). Verdicts, reports and events stay.
"""

from collections.abc import Sequence
from datetime import timedelta
from itertools import accumulate

from sqlalchemy import ColumnElement, Text, cast, delete, exists, func
from sqlmodel import Session, col, select

from registry.jobs import FINAL, Kind
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models.jobs import CampaignJobRow, CampaignRow, JobRow, JobStepRow

ENDED_CHARACTERS = 2 * 2**20
"""Of payloads, results, errors and steps, and 1,000 for each job beside."""
ENDED_RETENTION = timedelta(days=90)
_IS_ENDED = col(JobRow.state).in_(sorted(FINAL))
_IN_CAMPAIGN = exists().where(col(CampaignJobRow.job_id) == col(JobRow.id))
_OF_STEPS = select(func.sum(func.length(JobStepRow.message))).where(col(JobStepRow.job_id) == JobRow.id)
_CHARACTERS = (
    func.length(cast(col(JobRow.payload), Text)) + func.length(cast(col(JobRow.result), Text))
    + func.length(JobRow.error) + func.coalesce(_OF_STEPS.scalar_subquery(), 0) + 1000
)  # fmt: skip


def is_old() -> ColumnElement[bool]:
    """Condition on `job` that it ended too long ago to be kept."""
    before = db.now() - ENDED_RETENTION  # no job ends before it is created, which has an index
    return (col(JobRow.created_at) < before) & (col(JobRow.finished_at) < before) & _IS_ENDED


def is_empty_campaign() -> ColumnElement[bool]:
    """Condition on `campaign` that it is old and has no job."""
    has_job = exists().where(col(CampaignJobRow.campaign_id) == col(CampaignRow.id))
    return (col(CampaignRow.created_at) < db.now() - ENDED_RETENTION) & ~has_job


def delete_surplus(session: Session, version_id: int | None, kind: Kind) -> None:
    """Delete the ended jobs of this kind that a version has beyond the newest, of which one stays however long."""
    own = select(JobRow.id, _CHARACTERS).where(JobRow.version_id == version_id, JobRow.kind == kind)
    newest_first = own.where(_IS_ENDED, ~_IN_CAMPAIGN).order_by(col(JobRow.created_at).desc(), col(JobRow.id).desc())
    measured = session.exec(newest_first).all()
    totals = accumulate(length for _, length in measured)
    surplus = [job_id for (job_id, _), total in zip(measured, totals, strict=True) if total > ENDED_CHARACTERS]
    surplus = [job_id for job_id in surplus if job_id != measured[0][0]]
    if surplus:
        locked = select(JobRow.id).where(any_of(col(JobRow.id), surplus)).with_for_update(skip_locked=True)
        _delete(session, session.exec(locked).all())


def delete_old(session: Session, limit: int) -> int:
    """Delete up to this many old jobs; return how many."""
    old = session.exec(select(JobRow.id).where(is_old()).limit(limit).with_for_update(skip_locked=True)).all()
    _delete(session, old)
    return len(old)


def _delete(session: Session, job_ids: Sequence[str]) -> None:
    jobs = {JobStepRow: col(JobStepRow.job_id), CampaignJobRow: col(CampaignJobRow.job_id), JobRow: col(JobRow.id)}
    for table, column in jobs.items():
        session.connection().execute(delete(table).where(any_of(column, job_ids)))
