"""Aliases: move, roll back. The only way a pointer changes.

Invariants
- A move is one transaction: the pointer (compare-and-swap on its generation), its history row, its event.
- `main` moves only by `follow`, when a push makes a version. Every other move goes through the gate of its alias.
- A generation is never reused and history rows are never changed, so "what held then" is always answerable.
- Within one alias the times of moves strictly grow, even when the clock does not.
- Rolling back to what this alias held before needs no new evidence, but never leads to a withdrawn version.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import update
from sqlmodel import Session, col, select

from registry import names
from registry.api.aliases import AliasList, AliasView
from registry.digest import Digest
from registry.errors import Conflict, Invalid, NotFound, Reason, Refused
from registry.events import EventType
from registry.names import AdapterName, Selector
from registry.roles import Scope
from registry.server import audit, failpoints
from registry.server.actors import Actor
from registry.server.catalog import availability, versions
from registry.server.database import db
from registry.server.database.models import AliasMoveRow, AliasRow, VersionRow
from registry.server.promotion import gates

ROLLED_BACK = "rollback"
"""Marks, in a history row's evidence, a move that went back."""
NEXT = timedelta(microseconds=1)
"""How much later a move is than the one before, when a clock was set back."""
BROKE_GLASS = "break_glass"
"""Marks a move through a shut gate, with what was missing."""


def move(
    session: Session,
    actor: Actor,
    name: AdapterName,
    alias: str,
    version: VersionRow,
    *,
    expected_generation: int | None,
    reason: str = "",
    break_glass: bool = False,
) -> AliasView:
    """Point `alias` at `version` if its gate is open and it is still at `expected_generation` (0: it must be new).

    None takes whatever generation it is at now. `Conflict` (ALIAS_MOVED), `Refused` (GATE_CLOSED, with what is
    missing as reasons; YANKED, QUARANTINED), `Denied`. With `break_glass` an owner passes a shut gate, with a
    reason, and the move is marked for ever.
    """
    actor.require(Scope.PROMOTE, name)
    _refuse_main(names.alias(alias))
    availability.require_available(name, version)
    if break_glass:
        actor.require(Scope.ADMIN, name)
        if not reason.strip():
            raise Invalid("REQUEST_INVALID", "reason: break-glass needs a reason")
    gate, gate_evidence = gates.gather_evidence(session, name, alias, version)
    missing = gate.gate.missing(gate_evidence)
    if missing and not break_glass:
        raise Refused(
            "GATE_CLOSED",
            f"version {version.number} of '{name}' may not become '{alias}': {missing[0].message}"
            + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""),
            reasons=[Reason(f.code, f.location, f.message) for f in missing],
            next_step=_next_step(name, version, alias, missing[0].code),
        )
    evidence = gates.summarize_evidence(gate.gate, gate_evidence)
    if missing:
        evidence.insert(0, {"check": BROKE_GLASS, "missing": [f.code for f in missing]})
    return _point(session, actor, name, alias, version, expected_generation, reason, evidence)


def move_newest(session: Session, actor: Actor, name: AdapterName, version: VersionRow) -> AliasView:
    """Move `main` to a version that a push has just made. The push's lock on the adapter makes this safe."""
    return _point(session, actor, name, names.NEWEST, version, None, "pushed", [])


def rollback(
    session: Session,
    actor: Actor,
    name: AdapterName,
    alias: str,
    *,
    to: Selector | None = None,
    expected_generation: int | None = None,
    reason: str = "",
) -> AliasView:
    """Back to what `alias` held before this version, or to the version `to`.

    A version that this alias never held goes through the gate as in `move`.
    """
    actor.require(Scope.PROMOTE, name)
    _refuse_main(names.alias(alias))
    row = _row(session, actor, name, alias)
    moves = _moves(session, row)
    if to is None:
        version = _before(session, name, row, moves)
    else:
        version = versions.find(session, actor, name, to)
        if version.id not in {m.to_version_id for m in moves}:
            expected = row.generation if expected_generation is None else expected_generation
            return move(session, actor, name, alias, version, expected_generation=expected, reason=reason)
    availability.require_available(name, version)
    expected = row.generation if expected_generation is None else expected_generation
    held_since = max(m.generation for m in moves if m.to_version_id == version.id)
    evidence = [{"check": ROLLED_BACK, "generation": held_since}]
    return _point(session, actor, name, alias, version, expected, reason or "rolled back", evidence)


def list_aliases(session: Session, actor: Actor, name: AdapterName) -> AliasList:
    """The aliases of an adapter, by name."""
    adapter = versions.find_adapter(session, actor, name)
    statement = select(AliasRow).where(col(AliasRow.adapter_id) == adapter.id).order_by(col(AliasRow.alias))
    rows = session.exec(statement).all()
    return AliasList(items=[_view(session, row) for row in rows])


def show(session: Session, actor: Actor, name: AdapterName, alias: str) -> AliasView:
    return _view(session, _row(session, actor, name, alias))


# ------------------------------------------------------------------ the one place that writes a pointer
def _point(
    session: Session,
    actor: Actor,
    name: AdapterName,
    alias: str,
    version: VersionRow,
    expected: int | None,
    reason: str,
    evidence: list[dict[str, Any]],
) -> AliasView:
    where = (version.adapter_id, alias)
    before = session.get(AliasRow, where, populate_existing=True)
    generation = before.generation if before is not None else 0
    if expected is not None and expected != generation:
        raise _moved(name, alias, expected, generation)
    at = _after(before.moved_at if before is not None else None)
    values = {"version_id": version.id, "generation": generation + 1, "moved_at": at, "moved_by": actor.identity}
    values["reason"] = reason
    if not _swap(session, where, generation, values):
        raise _moved(name, alias, generation, generation + 1)
    moved = AliasMoveRow(
        adapter_id=version.adapter_id,
        alias=alias,
        generation=generation + 1,
        from_version_id=before.version_id if before is not None else None,
        to_version_id=version.id,
        at=at,
        actor=actor.identity,
        token_id=actor.token_id,
        reason=reason,
        evidence=evidence,
    )
    db.bulk_insert(session, [moved])
    failpoints.reach("alias.swapped")
    detail = {"to": version.number, "digest": version.digest, "generation": generation + 1, "reason": reason}
    for item in evidence:
        if item.get("check") == BROKE_GLASS:
            detail[BROKE_GLASS] = item["missing"]
    audit.append(session, actor, EventType.ALIAS_MOVE, f"{name}:{alias}", detail)
    return AliasView(
        alias=alias,
        number=version.number,
        digest=Digest(version.digest),
        generation=generation + 1,
        moved_at=at,
        moved_by=actor.identity,
        reason=reason,
    )


def _swap(session: Session, where: tuple[int, str], generation: int, values: dict[str, Any]) -> bool:
    """Compare and swap in one statement; False when another transaction was first."""
    if generation == 0:
        return db.insert_new(session, AliasRow, {"adapter_id": where[0], "alias": where[1], **values})
    statement = (
        update(AliasRow)
        .where(
            col(AliasRow.adapter_id) == where[0],
            col(AliasRow.alias) == where[1],
            col(AliasRow.generation) == generation,
        )
        .values(**values)
        .execution_options(synchronize_session=False)
    )
    return bool(session.connection().execute(statement).rowcount)


def _after(previous: datetime | None) -> datetime:
    """Now, but later than the previous move: a clock that was set back must not reorder history."""
    moment = db.now()
    return moment if previous is None or moment > previous else previous + NEXT


def _moved(name: AdapterName, alias: str, expected: int, actual: int) -> Conflict:
    return Conflict(
        "ALIAS_MOVED",
        f"alias '{alias}' of '{name}' is at generation {actual}, not {expected}: somebody moved it",
        next_step=f"look at it again with `adapter history {name}:{alias}`",
    )


# ------------------------------------------------------------------ reading
def _row(session: Session, actor: Actor, name: AdapterName, alias: str) -> AliasRow:
    adapter = versions.find_adapter(session, actor, name)
    row = session.get(AliasRow, (adapter.id, alias), populate_existing=True)
    if row is None:
        raise NotFound("ALIAS_UNKNOWN", f"adapter '{name}' has no alias '{alias}'")
    return row


def _view(session: Session, row: AliasRow) -> AliasView:
    version = session.get_one(VersionRow, row.version_id)
    return AliasView(
        alias=row.alias,
        number=version.number,
        digest=Digest(version.digest),
        generation=row.generation,
        moved_at=row.moved_at,
        moved_by=row.moved_by,
        reason=row.reason,
    )


def _moves(session: Session, row: AliasRow) -> Sequence[AliasMoveRow]:
    statement = select(AliasMoveRow).where(
        col(AliasMoveRow.adapter_id) == row.adapter_id, col(AliasMoveRow.alias) == row.alias
    )
    return session.exec(statement.order_by(col(AliasMoveRow.generation))).all()


def _before(session: Session, name: AdapterName, row: AliasRow, moves: Sequence[AliasMoveRow]) -> VersionRow:
    """What this alias held before the version that it holds, passing over withdrawn ones.

    Going back twice goes back two versions: a move that itself went back does not count as the arrival.
    """
    came_from = {m.to_version_id: m.from_version_id for m in moves if not _went_back(m)}
    visited = {row.version_id}
    version_id = came_from.get(row.version_id)
    while version_id is not None and version_id not in visited:
        version = session.get_one(VersionRow, version_id)
        if not availability.is_withdrawn(version):
            return version
        visited.add(version_id)
        version_id = came_from.get(version_id)
    raise NotFound(
        "VERSION_UNKNOWN",
        f"alias '{row.alias}' of '{name}' held no other version before that is not withdrawn",
        next_step="name one with --to",
    )


def _went_back(move: AliasMoveRow) -> bool:
    return any(item.get("check") == ROLLED_BACK for item in move.evidence)


def _refuse_main(alias: str) -> None:
    if alias == names.NEWEST:
        raise Refused("GATE_CLOSED", f"alias '{alias}' follows the newest version: only a push moves it")


def _next_step(name: AdapterName, version: VersionRow, alias: str, code: str) -> str:
    ref = f"{name}@{version.number}"
    if code in ("gate.compat_absent", "gate.weights_absent", "gate.smoke_absent"):
        return f"run `adapter smoke-test {ref} --wait`"
    steps = {
        "gate.approvals_few": f"run `adapter approve {ref} {alias}`",
        "gate.signature_absent": f"run `adapter sign {ref} --key KEY`",
        "gate.soak_short": f"promote it there and wait, then look at `adapter gate show {ref} {alias}`",
    }
    return steps.get(code, f"look at `adapter show {ref}`")
