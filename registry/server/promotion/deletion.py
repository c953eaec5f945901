"""Delete versions, restore them within the grace time, and erase their files after it.

- A deletion withholds the version at once, as a quarantine does, so whatever respects a quarantine respects a deletion.
- The row stays as a tombstone, with manifest, lineage and history: number and digest are never used again.
- After the grace time garbage collection erases files, verdicts, approvals and metadata, and cancels jobs that wait;
  blobs that nothing references go.
- Each step counts `quarantine` up, so a ref that was written meanwhile is written again.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Engine, and_, delete, exists, func, not_, or_
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from registry import names
from registry.api.catalog import VersionView
from registry.errors import Conflict, Invalid, NotFound
from registry.events import EventType
from registry.findings import Finding
from registry.jobs import State
from registry.names import AdapterName, Selector
from registry.next_steps import NextStep, StepKind
from registry.roles import Scope
from registry.server.actors import SYSTEM, Actor
from registry.server.catalog import availability, versions
from registry.server.database import db
from registry.server.database.models import (
    NEVER,
    AdapterRow,
    AliasRow,
    BaseEdgeRow,
    BaseRow,
    EdgeRow,
    VerdictRow,
    VersionAttributeRow,
    VersionFileRow,
    VersionMetadataRow,
    VersionRow,
)
from registry.server.database.models.jobs import JobRow
from registry.server.database.models.owner_rules import SIGNATURE, UNVERIFIED, ApprovalRow, AttestationRow
from registry.server.database.models.pushes import VersionNormsRow
from registry.server.jobs import queue
from registry.server.promotion import describe, withdraw
from registry.server.promotion.withdraw import StateChange
from registry.server.serving import reports

NEEDS_LIMIT = 50
"""Findings of one kind that an error lists."""
BATCH = 100
ALIAS_POINTS, ONLY_VERSION = "version.alias_points", "version.only_one"
FINAL = frozenset({ALIAS_POINTS, ONLY_VERSION})
"""Codes that `force` does not pass over."""
_CONTENTS = (VersionFileRow, VerdictRow, VersionNormsRow, VersionAttributeRow, VersionMetadataRow, ApprovalRow)


def delete_version(
    session: Session, actor: Actor, name: AdapterName, selector: Selector, *, reason: str = "", force: bool = False,
    dry_run: bool = False,
) -> VersionView:  # fmt: skip
    """Delete a version; a second time changes nothing. `Conflict` (VERSION_IN_USE) names what needs it.

    `force` passes over all but aliases that point at it and the last version of an adapter. `dry_run` only checks.
    """
    version = withdraw.lock(session, actor, Scope.ADMIN, name, selector, include_deleted=True)
    if version.deleted_at is None:
        require_unneeded(name, version, list(_find_needs(session, actor, name, version)), force=force)
        if not dry_run:
            require_reason(force, reason)
            withhold(session, actor, name, version, reason)
    return withdraw.view_with_nodes(session, name, version)


def require_unneeded(name: AdapterName, version: VersionRow, needs: Sequence[Finding], *, force: bool) -> None:
    """`Conflict` (VERSION_IN_USE) with what needs the version; `force` passes over all but `FINAL`."""
    needs = [need for need in needs if not force or need.code in FINAL]
    if needs:
        reasons = needs[0].message if len(needs) == 1 else f"there are {len(needs)} reasons"
        raise Conflict(
            "VERSION_IN_USE",
            f"cannot delete {name}@{version.number}: {reasons}",
            findings=needs,
            next_step=_next_step(name, needs),
        )


def require_reason(force: bool, reason: str) -> None:
    """`Invalid` for a forced deletion without a reason: who needed what it took away will ask for one."""
    if force and not reason.strip():
        raise Invalid("REQUEST_INVALID", "force: a reason is required", next_step="add `--reason TEXT`")


def withhold(session: Session, actor: Actor, name: AdapterName, version: VersionRow, reason: str) -> None:
    """Mark a version as deleted. The caller holds the adapter and the version, and knows that nothing needs it."""
    withdraw.write(session, actor, name, version, decide_deletion(actor, version, reason))


def decide_deletion(actor: Actor, version: VersionRow, reason: str, at: datetime | None = None) -> StateChange:
    """What a deletion at this time, or now, does to a version: one in quarantine stays there when it is restored."""
    now = at or db.now()
    values = {
        "deleted_at": now, "deleted_by": actor.identity, "delete_reason": reason,
        "quarantine": version.quarantine + 1,
    }  # fmt: skip
    if version.quarantined_at is None:
        values |= {"quarantined_at": now, "quarantine_reason": "deleted"}
    return StateChange(EventType.VERSION_DELETE, reason, values)


def undelete_version(
    session: Session, actor: Actor, name: AdapterName, selector: Selector, *, reason: str
) -> VersionView:
    """Restore a deleted version as it was, exempt from retention. `NotFound` (VERSION_DELETED) once it is purged."""
    version = withdraw.lock(session, actor, Scope.ADMIN, name, selector, include_deleted=True)
    change = decide_restore(name, version, reason)
    if change is not None:
        withdraw.write(session, actor, name, version, change)
        describe.set_expiry(session, actor, version, NEVER)  # else the next garbage collection deletes it again
    return versions.build_view(session, name, version)


def decide_restore(name: AdapterName, version: VersionRow, reason: str) -> StateChange | None:
    """What the end of a deletion does to a version; None if it is not deleted, `NotFound` once it is purged."""
    if version.purged_at is not None:
        detail = f"{availability.deletion_message(name, version)}, and its files were erased"
        raise NotFound("VERSION_DELETED", detail)
    if version.deleted_at is None:
        return None
    values = {"deleted_at": None, "deleted_by": "", "delete_reason": "", "quarantine": version.quarantine + 1}
    if version.quarantined_at == version.deleted_at:
        values |= {"quarantined_at": None, "quarantine_reason": ""}
    return StateChange(EventType.VERSION_UNDELETE, reason, values)


def _next_step(name: AdapterName, needs: Sequence[Finding]) -> NextStep:
    if needs[0].code == ONLY_VERSION:
        return NextStep(StepKind.DELETE_ADAPTER, str(name))
    if aliases := [need.location for need in needs if need.code == ALIAS_POINTS]:
        return NextStep(StepKind.FREE_ALIASES, aliases[0])
    return NextStep(StepKind.FORCE, str(name))


# ------------------------------------------------------------------ what needs a version
def _find_needs(session: Session, actor: Actor, name: AdapterName, version: VersionRow) -> Iterator[Finding]:
    others = select(VersionRow.id).where(
        VersionRow.adapter_id == version.adapter_id, VersionRow.id != version.id, col(VersionRow.deleted_at).is_(None)
    )
    if session.exec(others.limit(1)).first() is None:
        yield Finding.of("error", ONLY_VERSION, str(name), f"it is the only version of {name}")
    yield from find_uses(session, actor, name, col(VersionRow.id) == version.id, version)


def find_uses(
    session: Session, actor: Actor, name: AdapterName, owned: ColumnElement[bool], version: VersionRow | None = None
) -> Iterator[Finding]:
    """What needs the version, or without one the adapter, whose versions `owned` selects."""
    ids = select(VersionRow.id).where(owned).correlate(None)
    pointing = select(AliasRow.alias).where(col(AliasRow.version_id).in_(ids), AliasRow.alias != names.NEWEST)
    for alias in session.exec(pointing.order_by(col(AliasRow.alias))):
        yield Finding.of("error", ALIAS_POINTS, f"{name}:{alias}", f"the alias {name}:{alias} points at it")
    for node in reports.find_serving_nodes(session, name, version.digest if version else ""):
        message = f"node {node.node} reports it as {node.state}"
        yield Finding.of("error", "version.on_node", node.node, message)
    running = select(JobRow.id).where(col(JobRow.version_id).in_(ids), JobRow.state == State.RUNNING)
    sources = queue.find_sources(session, name, (State.RUNNING,))
    uses = [*session.exec(running), *(job for job, number in sources if version is None or number == version.number)]
    for job_id in list(dict.fromkeys(uses))[:NEEDS_LIMIT]:
        yield Finding.of("error", "version.job_runs", job_id, f"the running job {job_id} uses it")
    yield from _find_children(session, actor, name, owned)
    signed = select(AttestationRow.identity).where(
        col(AttestationRow.version_id).in_(ids), AttestationRow.made_by != actor.identity,
        col(AttestationRow.kind).in_((SIGNATURE, UNVERIFIED)),
    )  # fmt: skip
    for identity in session.exec(signed.limit(NEEDS_LIMIT)):
        yield Finding.of("error", "version.signed_by_other", identity, f"{identity} has signed it")


def counts_as_child(name: AdapterName, child: type[VersionRow]) -> ColumnElement[bool]:
    """Whether an edge of a version is about this adapter: it names it, or the version's adapter has no equal parent."""
    equal, parent = aliased(VersionRow), col(EdgeRow.parent_name)
    has_equal = exists().where(
        col(equal.adapter_id) == col(child.adapter_id), col(equal.digest) == col(EdgeRow.parent_digest),
        col(equal.deleted_at).is_(None),
    )  # fmt: skip
    return or_(parent == str(name), parent.startswith(f"{name}@", autoescape=True), not_(has_equal))


def _find_children(session: Session, actor: Actor, name: AdapterName, owned: ColumnElement[bool]) -> Iterator[Finding]:
    """What was made from the versions, apart from these, of what the actor may see."""
    digests = select(VersionRow.digest).where(owned).correlate(None)
    is_own = and_(col(AdapterRow.namespace) == name.namespace, col(AdapterRow.name) == name.name)
    children = (
        select(AdapterRow.namespace, AdapterRow.name, VersionRow.number, EdgeRow.relation)
        .join(VersionRow, col(VersionRow.adapter_id) == col(AdapterRow.id))
        .join(EdgeRow, col(EdgeRow.child_id) == col(VersionRow.id))
        .where(col(EdgeRow.parent_digest).in_(digests), col(VersionRow.deleted_at).is_(None), versions.visible(actor))
        .where(~owned, or_(is_own, counts_as_child(name, VersionRow)))
    )
    for namespace, word, number, relation in session.exec(children.limit(NEEDS_LIMIT)):
        child = f"{namespace}/{word}@{number}"
        yield Finding.of("error", "version.has_child", child, f"it is a parent of {child} ({relation})")
    fused = select(BaseRow.name).join(BaseEdgeRow, col(BaseEdgeRow.base_id) == col(BaseRow.id))
    for base in session.exec(fused.where(col(BaseEdgeRow.parent_digest).in_(digests)).limit(NEEDS_LIMIT)):
        yield Finding.of("error", "version.has_child", base, f"it was fused into the base {base}")


# ------------------------------------------------------------------ after the grace time
def _is_expired(grace: timedelta) -> ColumnElement[bool]:
    return and_(col(VersionRow.deleted_at) <= db.now() - grace, col(VersionRow.purged_at).is_(None))


def count_expired(session: Session, grace: timedelta) -> int:
    """How many versions were deleted longer ago than this and still have their files."""
    return session.exec(select(func.count()).select_from(VersionRow).where(_is_expired(grace))).one()


def purge_expired(engine: Engine, grace: timedelta) -> int:
    """Erase up to `BATCH` versions that were deleted longer ago than this; return how many."""
    with db.session(engine, write=False) as session:
        due = session.exec(select(VersionRow.id, VersionRow.adapter_id).where(_is_expired(grace)).limit(BATCH)).all()
    purged = 0
    for version_id, adapter_id in due:
        with db.session(engine) as session:
            owner = select(AdapterRow).where(AdapterRow.id == adapter_id).with_for_update()  # first, as all others do
            adapter = session.exec(owner).first()
            still_due = select(VersionRow).where(VersionRow.id == version_id, _is_expired(grace)).with_for_update()
            version = session.exec(still_due).first()
            if adapter is None or version is None:
                continue
            name = AdapterName(adapter.namespace, adapter.name)
            values = {"purged_at": db.now(), "quarantine": version.quarantine + 1}
            change = StateChange(EventType.VERSION_PURGE, version.delete_reason, values)
            withdraw.write(session, SYSTEM, name, version, change)
            erase_contents(session, version)
            queue.cancel_waiting(session, version)
            purged += 1
    return purged


def erase_contents(session: Session, version: VersionRow) -> None:
    """Delete the rows of a version's files and of all that was found out about them."""
    for table in _CONTENTS:
        session.connection().execute(delete(table).where(col(table.version_id) == version.id))
    if version.measured_at is None:
        session.add(version.sqlmodel_update({"measured_at": version.purged_at}))
    session.flush()
