"""Campaigns: have many versions of one base tried again, watch how it goes, and see what changed.

Invariants
- Which versions are affected is a query on what their newest verdict was made on and with; nothing is tried in vain.
- Jobs, campaign and event are one transaction. A job that waits already is joined, not doubled.
- A campaign tells only of versions that the asker may see.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Iterator

from sqlalchemy import Subquery, and_, func
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from registry import names
from registry.adapters.formats import IMAGE_FORMATS
from registry.api.jobs import CampaignItem, CampaignRequest, CampaignView
from registry.errors import NotFound, TooLarge
from registry.evaluation.verdicts import Check, Outcome
from registry.events import EventType
from registry.jobs import Kind, State
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import audit
from registry.server.actors import Actor
from registry.server.catalog import bases
from registry.server.database import db
from registry.server.database.models import (
    AdapterRow,
    BaseRow,
    CampaignJobRow,
    CampaignRow,
    JobRow,
    VerdictRow,
    VersionRow,
)
from registry.server.jobs import queue

JOBS_LIMIT = 5000
ITEMS_LIMIT = 1000
"""Changed versions that one answer names; `changed` counts all of them."""
PEFT = "peft"

Affected = tuple[VersionRow, AdapterName, VerdictRow | None]


def start_campaign(session: Session, actor: Actor, request: CampaignRequest) -> CampaignView:
    """Queue the affected versions of a base. `TooLarge` (SIZE_INVALID) over `JOBS_LIMIT`."""
    base = bases.find(session, names.base_name(request.base))
    affected = list(_affected(session, actor, base, request))
    if len(affected) > JOBS_LIMIT:
        raise TooLarge(
            "SIZE_INVALID",
            f"{len(affected)} versions are over the limit of {JOBS_LIMIT} for one campaign",
            next_step="ask for those that are outdated, or wait for this one and begin the next",
        )
    row = CampaignRow(
        id="cam_" + secrets.token_hex(10),
        base=base.name,
        base_fingerprint=base.fingerprint,
        why=request.model_dump(mode="json", exclude={"base"}),
        created_at=db.now(),
        created_by=actor.identity,
    )
    session.add(row)
    session.flush()
    for version, name, verdict in affected:
        job = queue.enqueue(
            session, actor, Kind.SMOKE_TEST, version, name=name, base=base.name, priority=request.priority
        )
        session.flush()
        before, summary = (verdict.outcome, verdict.summary) if verdict is not None else ("", "")
        session.add(CampaignJobRow(campaign_id=row.id, job_id=job.id, before=before, summary=summary))
    audit.append(session, actor, EventType.CAMPAIGN_BEGIN, row.id, {"base": base.name, "jobs": len(affected)})
    session.flush()
    return show_campaign(session, actor, row.id)


def _affected(session: Session, actor: Actor, base: BaseRow, request: CampaignRequest) -> Iterator[Affected]:
    """The versions of the base that the actor may have judged, with their newest verdict, if it calls for a new one."""
    smoke, compat = _newest(base, Check.SMOKE), _newest(base, Check.COMPAT)
    pipeline = bases.load_spec(base).is_pipeline
    statement = (
        select(VersionRow, AdapterRow.namespace, AdapterRow.name, VerdictRow)
        .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
        .outerjoin(smoke, col(VersionRow.id) == smoke.c.version_id)
        .outerjoin(VerdictRow, col(VerdictRow.id) == smoke.c.newest)
        .where(col(VersionRow.base_id) == base.id, col(VersionRow.yanked_at).is_(None))
        .where(col(VersionRow.quarantined_at).is_(None))
        .where(col(VersionRow.id).in_(_fitting(compat)))
        .order_by(col(VersionRow.id))
    )
    for version, namespace, adapter, verdict in session.exec(statement):
        format_name = version.facts.get("format", PEFT)
        foreign = format_name != PEFT and not (pipeline and format_name in IMAGE_FORMATS)  # no worker can try it
        if not foreign and actor.may(Scope.PUSH, namespace, adapter) and _calls_for(verdict, base, request):
            yield version, AdapterName(namespace, adapter), verdict


def _newest(base: BaseRow, check: Check) -> Subquery:
    """Version → its newest verdict of this check on this base."""
    return (
        select(VerdictRow.version_id, func.max(VerdictRow.id).label("newest"))
        .where(col(VerdictRow.base_id) == base.id, col(VerdictRow.check) == check)
        .group_by(col(VerdictRow.version_id))
        .subquery()
    )


def _fitting(newest: Subquery) -> SelectOfScalar[int]:
    """Versions whose header does not rule them out: of the others a worker could only say the same."""
    return (
        select(VerdictRow.version_id)
        .join(newest, col(VerdictRow.id) == newest.c.newest)
        .where(col(VerdictRow.outcome) != Outcome.FAIL)
    )


def _calls_for(verdict: VerdictRow | None, base: BaseRow, request: CampaignRequest) -> bool:
    if not request.outdated and not request.made_by:
        return True
    if verdict is None or verdict.base_fingerprint != base.fingerprint:
        return True
    return any(not _is_of(verdict.made_by.get(tool, ""), version) for tool, version in request.made_by.items())


def _is_of(actual: str, expected: str) -> bool:
    """Whether this is the version that is asked for: 2.13.0+cpu is a build of 2.13.0."""
    return expected in (actual, actual.partition("+")[0])


def show_campaign(session: Session, actor: Actor, campaign_id: str) -> CampaignView:
    """How far it is, and what changed so far. `NotFound` (CAMPAIGN_UNKNOWN)."""
    row = session.get(CampaignRow, campaign_id[:100])
    if row is None:
        raise _unknown(campaign_id)
    statement = (
        select(CampaignJobRow, JobRow, VerdictRow.outcome, VerdictRow.summary)
        .join(JobRow, col(JobRow.id) == col(CampaignJobRow.job_id))
        .outerjoin(
            VerdictRow,
            and_(
                col(VerdictRow.version_id) == col(JobRow.version_id),
                col(VerdictRow.check) == Check.SMOKE,
                col(VerdictRow.job_id) == col(JobRow.id),
            ),
        )
        .where(col(CampaignJobRow.campaign_id) == row.id)
        .order_by(col(JobRow.subject))
    )
    visible = [one for one in session.exec(statement) if _may_see(actor, one[1])]
    if not visible and row.created_by != actor.identity and not actor.may_everywhere(Scope.PULL):
        raise _unknown(campaign_id)
    counts = Counter(State(job.state) for _, job, _, _ in visible)
    changed = list(_changed(visible))
    return CampaignView(
        id=row.id,
        base=row.base,
        created_at=row.created_at,
        created_by=row.created_by,
        total=len(visible),
        states={state: counts[state] for state in State if counts[state]},
        finished=not counts[State.QUEUED] and not counts[State.RUNNING],
        changed=len(changed),
        items=changed[:ITEMS_LIMIT],
    )


def _unknown(campaign_id: str) -> NotFound:
    """The one answer for a campaign that is absent, and for somebody else's in which the actor sees no job."""
    return NotFound("CAMPAIGN_UNKNOWN", f"there is no campaign {campaign_id[:100]!r}, or you may not see it")


def _may_see(actor: Actor, job: JobRow) -> bool:
    return actor.sees(AdapterName.parse(job.subject.partition("@")[0]))


def _changed(jobs: Iterable[tuple[CampaignJobRow, JobRow, str | None, str | None]]) -> Iterator[CampaignItem]:
    """Versions that are judged otherwise than before, and those that could not be judged."""
    for member, job, after, summary in jobs:
        if job.state == State.FAILED or (after and after != member.before):
            says = job.error if job.state == State.FAILED else summary
            yield CampaignItem(
                version=job.subject, job=job.id, state=State(job.state), before=member.before, after=after or "",
                summary=(says or "")[:2000],
            )  # fmt: skip
