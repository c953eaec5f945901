"""Campaigns: smoke-test many versions of one base again, follow the progress, and see what changed.

Jobs, campaign and event are one transaction. A campaign shows only versions that the actor may see.
"""

import itertools
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, cast

from sqlalchemy import and_
from sqlalchemy.orm import defer
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import Session, col, select

from registry import names
from registry.api.jobs import CampaignItem, CampaignRequest, CampaignView
from registry.errors import NotFound, TooLarge
from registry.evaluation.verdicts import Check, Outcome
from registry.events import EventType
from registry.jobs import FINAL, Kind, State
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import audit
from registry.server.access import rate_limits
from registry.server.actors import Actor
from registry.server.catalog import availability, base_rows, verdicts, versions
from registry.server.database import db
from registry.server.database.models import AdapterRow, BaseRow, VerdictRow, VersionRow
from registry.server.database.models.jobs import CampaignJobRow, CampaignRow, JobRow
from registry.server.jobs import queue, queue_position
from registry.server.jobs.requests import can_be_tested

JOBS_LIMIT = 5000
DAILY_LIMIT = 100
DAY = timedelta(days=1)
READ_ROWS = 500
NEWEST_LIMIT = 10
ITEMS_LIMIT = 1000
"""Changed versions that one response lists; `changed` counts all of them."""
MAY_BE_TESTED = frozenset(Outcome) - {Outcome.FAIL}
"""Outcomes of `compat`: of a version that failed it, a worker could only report the same."""

Affected = tuple[VersionRow, AdapterName, VerdictRow | None]


def start_campaign(session: Session, actor: Actor, request: CampaignRequest) -> CampaignView:
    """Queue the affected versions of a base. `TooLarge` (SIZE_INVALID) over `JOBS_LIMIT`."""
    base = base_rows.find(session, names.base_name(request.base))
    _check_count(session, actor)
    affected = list(itertools.islice(_affected(session, actor, base, request), JOBS_LIMIT + 1))
    if len(affected) > JOBS_LIMIT:
        raise TooLarge(
            "SIZE_INVALID",
            f"there are more than {JOBS_LIMIT} versions, the limit of one campaign",
            next_step="limit it to outdated versions",
        )
    row = CampaignRow(
        id="cam_" + secrets.token_hex(10), base=base.name, base_fingerprint=base.fingerprint,
        request=request.model_dump(mode="json", exclude={"base"}), created_at=db.now(), created_by=actor.identity,
    )  # fmt: skip
    session.add(row)
    session.flush()
    options: dict[str, Any] = {"base": base.name, "priority": request.priority}
    for version, name, verdict in affected:
        job = queue.enqueue(session, actor, Kind.SMOKE_TEST, version, name=name, **options)
        session.flush()
        before, summary = (verdict.outcome, verdict.summary) if verdict is not None else ("", "")
        session.add(CampaignJobRow(campaign_id=row.id, job_id=job.id, before=before, summary=summary))
    audit.append(session, actor, EventType.CAMPAIGN_START, row.id, {"base": base.name, "jobs": len(affected)})
    session.flush()
    return show_campaign(session, actor, row.id)


def _check_count(session: Session, actor: Actor) -> None:
    """`Unavailable` (RATE_LIMITED) if the actor began too many campaigns in the last day: each may have 5,000 rows."""
    db.lock_names(session, f"campaigns of {actor.identity}")
    began = select(CampaignRow.created_at).where(
        CampaignRow.created_by == actor.identity, col(CampaignRow.created_at) > db.now() - DAY
    )
    moments = session.exec(began.order_by(col(CampaignRow.created_at).desc()).limit(DAILY_LIMIT)).all()
    if len(moments) >= DAILY_LIMIT:
        wait = (moments[-1] + DAY - db.now()).total_seconds()
        raise rate_limits.rate_limited(f"campaigns by {actor.identity!r}", DAILY_LIMIT, wait, "day")


def _affected(session: Session, actor: Actor, base: BaseRow, request: CampaignRequest) -> Iterator[Affected]:
    """The versions of the base that need a new verdict and that the actor may push, with their newest one."""
    spec = base_rows.load_spec(base)
    statement = (
        select(VersionRow, AdapterRow.namespace, AdapterRow.name, VerdictRow)
        .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
        .outerjoin(VerdictRow, verdicts.is_current(Check.SMOKE))
        .where(versions.permitted(actor, Scope.PUSH, col(AdapterRow.namespace), versions.has_name))
        .where(col(VersionRow.base_id) == base.id, ~availability.WITHDRAWN)
        .where(verdicts.has_outcome(Check.COMPAT, MAY_BE_TESTED))
        .order_by(col(VersionRow.id))
    )
    for version, namespace, adapter, verdict in session.exec(statement.execution_options(yield_per=READ_ROWS)):
        if can_be_tested(version, spec) and _needs_verdict(verdict, base, request):
            yield version, AdapterName(namespace, adapter), verdict


def _needs_verdict(verdict: VerdictRow | None, base: BaseRow, request: CampaignRequest) -> bool:
    if not request.outdated and not request.made_by:
        return True
    if verdict is None or verdict.base_fingerprint != base.fingerprint:
        return True
    for tool, version in request.made_by.items():
        actual = verdict.made_by.get(tool, "")
        if version not in (actual, actual.partition("+")[0]):  # 2.13.0+cpu is a build of 2.13.0
            return True
    return False


def show_campaign(session: Session, actor: Actor, campaign_id: str) -> CampaignView:
    """The progress of a campaign and what has changed so far. `NotFound` (CAMPAIGN_UNKNOWN)."""
    row = session.get(CampaignRow, campaign_id[:100])
    if row is None:
        raise _unknown(campaign_id)
    own_verdict = and_(
        col(VerdictRow.version_id) == col(JobRow.version_id),
        col(VerdictRow.check) == Check.SMOKE,
        col(VerdictRow.job_id) == col(JobRow.id),
    )
    statement = (
        select(CampaignJobRow, JobRow, VerdictRow.outcome, VerdictRow.summary)
        .join(JobRow, col(JobRow.id) == col(CampaignJobRow.job_id))
        .outerjoin(VerdictRow, own_verdict)
        .where(col(CampaignJobRow.campaign_id) == row.id)
        .order_by(col(JobRow.subject))
    )
    members = session.exec(statement.options(defer(cast(Any, JobRow.result)))).all()  # long ones of 5,000 jobs
    for _, job, _, _ in members:
        set_committed_value(job, "result", {})
    visible = [row for row in members if actor.sees(queue.subject_adapter(row[1]))]
    if not visible and row.created_by != actor.identity and not actor.may_everywhere(Scope.PULL):
        raise _unknown(campaign_id)
    counts = Counter(State(job.state) for _, job, _, _ in visible)
    changed = list(_changed(visible))
    return db.to_view(
        row,
        CampaignView,
        total=len(visible),
        states={state: counts[state] for state in State if counts[state]},
        finished=not counts[State.QUEUED] and not counts[State.RUNNING],
        worker_is_busy=_has_busy_worker(session, [job for _, job, _, _ in visible]),
        changed=len(changed),
        items=changed[:ITEMS_LIMIT],
    )


def _has_busy_worker(session: Session, rows: Sequence[JobRow]) -> bool:
    """Whether a worker runs one of these jobs now, or may take one next."""
    waiting = [row for row in rows if queue.to_job(row).waits_for_a_worker]
    is_running = len(waiting) < sum(row.state not in FINAL for row in rows)
    return is_running or queue_position.has_busy_worker(session, waiting)


def list_newest(session: Session, actor: Actor, base: str = "") -> Sequence[CampaignRow]:
    """The newest campaigns, of one base or of all, that the actor started; of all for those who may see all."""
    statement = select(CampaignRow).where(*([col(CampaignRow.base) == base] if base else []))
    if not actor.may_everywhere(Scope.PULL):
        statement = statement.where(col(CampaignRow.created_by) == actor.identity)
    return session.exec(statement.order_by(col(CampaignRow.created_at).desc()).limit(NEWEST_LIMIT)).all()


def _unknown(campaign_id: str) -> NotFound:
    """The same error for a campaign that does not exist and for one in which the actor sees no job."""
    return NotFound("CAMPAIGN_UNKNOWN", f"there is no campaign {campaign_id[:100]!r}, or you may not see it")


def _changed(jobs: Iterable[tuple[CampaignJobRow, JobRow, str | None, str | None]]) -> Iterator[CampaignItem]:
    """Versions whose outcome differs from before, and those whose job failed."""
    for member, job, after, summary in jobs:
        if job.state == State.FAILED or (after and after != member.before):
            text = job.error if job.state == State.FAILED else summary
            yield CampaignItem(
                version=job.subject, job=job.id, state=State(job.state), before=member.before, after=after or "",
                summary=(text or "")[:2000],
            )  # fmt: skip
