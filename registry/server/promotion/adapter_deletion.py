"""Delete an adapter with all its versions, and restore it within the grace time.

- An adapter is deleted when it has no `main`. Its aliases end in its history, and its versions are withheld as deleted
  ones are, all at one moment. What something needs is refused as it is for one version.
- Its name is nobody's. Trusted publishers stay, with nothing to push to, until the name is released.
- An owner may release the name if nobody else ever had its bytes; in a rehearsal namespace every deletion does. The
  next push takes the name and continues its numbers; from then on only single versions can be restored.
- A restore gives back the versions of that moment, and the aliases that ended with them. Versions that were deleted
  earlier stay deleted.
- Garbage collection erases the files after the grace time. Row, versions, lineage and history stay as tombstones.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete as delete_rows
from sqlalchemy import func, update
from sqlmodel import Session, col, select

from registry import names
from registry.api.catalog import DeleteResult
from registry.errors import Conflict, NotFound
from registry.events import EventType
from registry.findings import Finding
from registry.names import AdapterName
from registry.next_steps import NextStep, StepKind
from registry.roles import Scope
from registry.server import audit
from registry.server.access import epoch, namespaces, reserved_names
from registry.server.actors import Actor
from registry.server.catalog import versions
from registry.server.catalog.search import text_index
from registry.server.database import db
from registry.server.database.models import AdapterRow, AliasMoveRow, AliasRow, VersionRow
from registry.server.database.models.pushes import PushRow
from registry.server.database.models.sign_in import PublisherRow
from registry.server.promotion import alias_deletion, deletion, moves
from registry.server.promotion.move_decisions import AliasState, MoveDecision
from registry.server.serving import reports


def delete_adapter(
    session: Session, actor: Actor, name: AdapterName, *, reason: str = "", force: bool = False, dry_run: bool = False
) -> DeleteResult:
    """Delete an adapter. `Conflict` (ADAPTER_IN_USE) names what needs it; `force` passes over that, with a reason.

    `dry_run`: only find what needs it. `NotFound`, `Denied`.
    """
    actor.require(Scope.ADMIN, name)
    adapter = versions.find_adapter(session, actor, name, lock=True)
    owned = (col(VersionRow.adapter_id) == adapter.id) & col(VersionRow.deleted_at).is_(None)
    rows = session.exec(select(VersionRow).where(owned).order_by(col(VersionRow.number)).with_for_update()).all()
    needs = list(deletion.find_uses(session, actor, name, owned))
    result = DeleteResult(
        name=str(name), versions=len(rows), needs=needs, served_on=reports.find_serving_nodes(session, name)
    )
    if dry_run:
        return result
    deletion.require_reason(force, reason)
    if needs and not force:
        raise _in_use(name, needs)
    moment = db.now()
    end_name(session, name)  # it locks the access epoch before rows of usage, as a rename does
    aliases = select(AliasRow).where(AliasRow.adapter_id == adapter.id).order_by(col(AliasRow.alias))
    for alias in session.exec(aliases.with_for_update()).all():
        alias_deletion.end(session, actor, name, alias, reason or "the adapter was deleted")
    for row in rows:
        values = deletion.decide_deletion(actor, row, reason, moment).values
        session.add(row.sqlmodel_update({**values, "recorded_at": None}))
        session.flush()
        text_index.forget_version(session, row)
    detail = {"versions": len(rows), "digests": [row.digest for row in rows[:100]], "reason": reason}
    audit.append(session, actor, EventType.ADAPTER_DELETE, str(name), detail)
    if namespaces.find_with_rule(session, "rehearsal", [name.namespace]):
        _release(session, actor, name, "rehearsal")
    return result


def undelete_adapter(session: Session, actor: Actor, name: AdapterName, *, reason: str) -> DeleteResult:
    """Restore a deleted adapter; one that is not deleted stays as it is. `NotFound` once its files are erased."""
    actor.require(Scope.ADMIN, name)
    adapter = versions.find_adapter(session, actor, name, lock=True, include_deleted=True)
    moment = _moment_of(session, adapter)
    if moment is None:
        return DeleteResult(name=str(name))
    statement = select(VersionRow).where(VersionRow.adapter_id == adapter.id, VersionRow.deleted_at == moment)
    rows = session.exec(statement.order_by(col(VersionRow.number)).with_for_update()).all()
    reserved_names.remove_tombstone(session, name.namespace, name.name)
    for row in rows:
        change = deletion.decide_restore(name, row, reason)
        if change is not None:
            session.add(row.sqlmodel_update({**change.values, "recorded_at": None}))
    session.flush()
    _restore_aliases(session, actor, name, adapter, {row.id or 0: row for row in rows}, moment, reason)
    epoch.advance(session)
    moves.follow_newest(session, actor, name, adapter.id or 0, reason)
    audit.append(session, actor, EventType.ADAPTER_UNDELETE, str(name), {"versions": len(rows), "reason": reason})
    return DeleteResult(name=str(name), versions=len(rows))


def release_name(session: Session, actor: Actor, name: AdapterName, *, reason: str) -> DeleteResult:
    """Let the next push have the name of a deleted adapter. `Conflict` (ADAPTER_IN_USE) if others had its bytes."""
    actor.require(Scope.ADMIN, name)
    adapter = versions.find_adapter(session, actor, name, lock=True, include_deleted=True)
    if _has_main(session, adapter):
        step = f"delete it first: `adapter delete {name}`"
        raise Conflict("ADAPTER_IN_USE", f"adapter '{name}' is not deleted", next_step=step)
    use = audit.find_other_use(session, actor, name)
    if use is not None:
        when = use.at.strftime("%Y-%m-%d %H:%M UTC")
        message = f"cannot release the name '{name}': {use.actor or 'anyone'} had its bytes on {when} ({use.action})"
        raise Conflict("ADAPTER_IN_USE", message, next_step="push under another name: this one means something there")
    if reserved_names.has_tombstone(session, name):
        _release(session, actor, name, reason)
    return DeleteResult(name=str(name))


def _release(session: Session, actor: Actor, name: AdapterName, reason: str) -> None:
    reserved_names.remove_tombstone(session, name.namespace, name.name)
    publishers = delete_rows(PublisherRow).filter_by(namespace=name.namespace, name=name.name)
    session.connection().execute(publishers)
    audit.append(session, actor, EventType.ADAPTER_RELEASE, str(name), {"reason": reason})


def end_name(session: Session, name: AdapterName) -> None:
    """Take a name away from its adapter: nobody gets it unless it is released, and pushes in progress fail."""
    reserved_names.add_tombstone(session, name.namespace, name.name)
    pushes = update(PushRow).filter_by(namespace=name.namespace, name=name.name)
    session.connection().execute(pushes.values(expires_at=db.now()))
    epoch.advance(session)


def _in_use(name: AdapterName, needs: Sequence[Finding]) -> Conflict:
    reasons = needs[0].message if len(needs) == 1 else f"there are {len(needs)} reasons"
    step = NextStep(StepKind.FORCE, str(name))
    return Conflict("ADAPTER_IN_USE", f"cannot delete {name}: {reasons}", findings=needs, next_step=step)


def _moment_of(session: Session, adapter: AdapterRow) -> datetime | None:
    """When an adapter was deleted; None if it was not. `NotFound` (ADAPTER_DELETED) if its files were erased."""
    if _has_main(session, adapter):
        return None
    newest = select(func.max(VersionRow.deleted_at)).where(VersionRow.adapter_id == adapter.id)
    moment = session.exec(newest).one()
    purged = select(VersionRow.id).where(
        VersionRow.adapter_id == adapter.id, VersionRow.deleted_at == moment, col(VersionRow.purged_at).is_not(None)
    )
    if moment is None or session.exec(purged.limit(1)).first() is not None:
        message = f"adapter '{adapter.namespace}/{adapter.name}' was deleted, and its files were erased"
        raise NotFound("ADAPTER_DELETED", message)
    return moment


def _has_main(session: Session, adapter: AdapterRow) -> bool:
    main = select(AliasRow.generation).where(AliasRow.adapter_id == adapter.id, AliasRow.alias == names.NEWEST)
    return session.exec(main).first() is not None


def _restore_aliases(
    session: Session, actor: Actor, name: AdapterName, adapter: AdapterRow, restored: dict[int, VersionRow],
    moment: datetime, reason: str,
) -> None:  # fmt: skip
    """Point the aliases that ended with the adapter at the versions at which they pointed."""
    later = select(func.max(AliasMoveRow.generation), AliasMoveRow.alias).where(AliasMoveRow.adapter_id == adapter.id)
    last = {alias: generation for generation, alias in session.exec(later.group_by(col(AliasMoveRow.alias)))}
    ended = select(AliasMoveRow).where(
        AliasMoveRow.adapter_id == adapter.id, col(AliasMoveRow.to_version_id).is_(None), AliasMoveRow.at >= moment
    )
    decisions = [
        MoveDecision(name, move.alias, restored[move.from_version_id], AliasState(move.generation), reason)
        for move in session.exec(ended.order_by(col(AliasMoveRow.alias)))
        if move.generation == last[move.alias] and move.from_version_id in restored
    ]
    if decisions:
        moves.write(session, actor, decisions)
