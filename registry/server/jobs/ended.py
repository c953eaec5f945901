"""Delete ended jobs, whose payloads, results and steps no quota counts.

- Queueing a job deletes those of its version and kind beyond the newest `ENDED_LIMIT`, those of campaigns aside. So
  their number is bounded, however fast a namespace's own worker ends them.
- All go `ENDED_RETENTION` after they ended (`adapter gc`). Verdicts, reports and events stay.
"""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, exists
from sqlmodel import Session, col, select

from registry.jobs import FINAL, Kind
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import CampaignJobRow, CampaignRow, JobRow, JobStepRow

ENDED_LIMIT = 50
ENDED_RETENTION = timedelta(days=90)
_IS_ENDED = col(JobRow.state).in_(sorted(FINAL))
_IN_CAMPAIGN = exists().where(col(CampaignJobRow.job_id) == col(JobRow.id))


def is_old() -> ColumnElement[bool]:
    """Condition on `job` that it ended too long ago to be kept."""
    before = db.now() - ENDED_RETENTION  # no job ends before it is created, which has an index
    return (col(JobRow.created_at) < before) & (col(JobRow.finished_at) < before) & _IS_ENDED


def is_empty_campaign() -> ColumnElement[bool]:
    """Condition on `campaign` that it is old and has no job."""
    has_job = exists().where(col(CampaignJobRow.campaign_id) == col(CampaignRow.id))
    return (col(CampaignRow.created_at) < db.now() - ENDED_RETENTION) & ~has_job


def delete_surplus(session: Session, version_id: int | None, kind: Kind) -> None:
    """Delete the ended jobs of this kind that a version has beyond the newest."""
    own = select(JobRow.id).where(JobRow.version_id == version_id, JobRow.kind == kind, _IS_ENDED, ~_IN_CAMPAIGN)
    newest_first = own.order_by(col(JobRow.created_at).desc(), col(JobRow.id).desc())
    surplus = session.exec(newest_first.offset(ENDED_LIMIT).with_for_update(skip_locked=True)).all()
    if surplus:
        _delete(session, surplus)


def delete_old(session: Session, limit: int) -> int:
    """Delete up to this many old jobs; return how many."""
    old = session.exec(select(JobRow.id).where(is_old()).limit(limit).with_for_update(skip_locked=True)).all()
    _delete(session, old)
    return len(old)


def _delete(session: Session, job_ids: Sequence[str]) -> None:
    jobs = {JobStepRow: col(JobStepRow.job_id), CampaignJobRow: col(CampaignJobRow.job_id), JobRow: col(JobRow.id)}
    for table, column in jobs.items():
        session.connection().execute(delete(table).where(any_of(column, job_ids)))
