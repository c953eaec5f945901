"""Aliases: promote, roll back, show the history. The only place that changes where an alias points.

- A move is one transaction: the pointer (compare-and-swap on its generation), its history row, its event.
- `main` moves only when a push creates a version. Every other move passes the gate of its alias; going back to a
  version that the alias has held needs no new evidence, but never leads to a withdrawn version.
- A generation is never used twice, history rows never change, and the times of an alias's moves strictly grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, SQLColumnExpression, and_, exists, literal_column, or_, update
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from registry import names
from registry.api.aliases import AliasList, AliasMove, AliasView, History
from registry.digest import Digest
from registry.errors import Conflict, Invalid, NotFound, Refused, Unavailable
from registry.evaluation.gates import WEIGHTS_PENDING
from registry.events import EventType
from registry.findings import Finding
from registry.names import AdapterName, Selector
from registry.roles import Scope
from registry.server import audit, failpoints
from registry.server.actors import Actor, unknown_adapter
from registry.server.catalog import availability, versions
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import AdapterRow, AliasMoveRow, AliasRow, EventRow, VersionRow
from registry.server.promotion import gates

ROLLBACK = "rollback"
"""Marks a rollback in a history row's evidence."""
BREAK_GLASS = "break_glass"
"""Marks a move through a closed gate in the evidence, with what was missing."""
PENDING_RETRY_SECONDS = 2
PUSHED = "pushed"
"""The reason of a move of `main`."""
_NEWEST = (
    select(AliasRow)
    .where(any_of(col(AliasRow.adapter_id), parameter="ids"), col(AliasRow.alias) == names.NEWEST)
    .execution_options(populate_existing=True)
)
_MOVED_COLUMNS: tuple[tuple[str, SQLColumnExpression[Any]], ...] = tuple(
    (name, literal_column(f"excluded.{name}"))
    for name in ("version_id", "generation", "moved_at", "moved_by", "reason")
)
TIME_STEP = timedelta(microseconds=1)
"""How much later a move is than the one before if the clock was set back."""


def move(
    session: Session, actor: Actor, name: AdapterName, alias: str, version: VersionRow, *,
    expected_generation: int | None, reason: str = "", break_glass: bool = False,
) -> AliasView:  # fmt: skip
    """Point `alias` at `version` if its gate is open and it is still at `expected_generation` (0: it must be new).

    None accepts any generation. `Conflict` (ALIAS_MOVED), `Refused` (GATE_CLOSED, with what is missing as findings;
    YANKED, QUARANTINED), `Unavailable` (TRY_LATER: only the weights are pending), `Denied`. With `break_glass` an owner
    passes a closed gate; the move needs a reason and is marked in the history and the audit log. Nothing happens if
    `alias` points at `version` already.
    """
    actor.require(Scope.PROMOTE, name)
    _refuse_main(names.alias(alias))
    availability.require_available(name, version)
    if break_glass:
        actor.require(Scope.ADMIN, name)
        if not reason.strip():
            raise Invalid("REQUEST_INVALID", "reason: break-glass needs a reason")
    current = session.get(AliasRow, (version.adapter_id, alias), populate_existing=True)
    if current is not None and current.version_id == version.id:
        if expected_generation not in (None, current.generation):
            raise _moved(name, alias, expected_generation or 0, current.generation)
        return _view(session, current)
    gate, gathered = gates.gather_evidence(session, actor, name, alias, version)
    missing = gate.gate.missing(gathered)
    if missing and not break_glass:
        raise _closed_gate(name, version, alias, missing)
    evidence = gates.summarize_evidence(gate.gate, gathered)
    if missing:
        evidence.insert(0, {"check": BREAK_GLASS, "missing": [f.code for f in missing]})
    return _point(session, actor, name, alias, version, expected_generation, reason, evidence)


def follow_newest(session: Session, actor: Actor, name: AdapterName, adapter_id: int, reason: str) -> None:
    """Point `main` at the newest version that is not withdrawn, else at the newest that is not deleted.

    Nothing happens if it is there. The caller holds the adapter's lock.
    """
    withdrawn = or_(col(VersionRow.yanked_at).is_not(None), col(VersionRow.quarantined_at).is_not(None))
    candidates = select(VersionRow).where(VersionRow.adapter_id == adapter_id, col(VersionRow.deleted_at).is_(None))
    best = session.exec(candidates.order_by(withdrawn, col(VersionRow.number).desc()).limit(1)).first()
    main = session.get(AliasRow, (adapter_id, names.NEWEST), populate_existing=True)
    if best is not None and (main is None or main.version_id != best.id):
        _point(session, actor, name, names.NEWEST, best, None, reason, [])


def move_all_newest(
    session: Session, actor: Actor, versions: Sequence[tuple[AdapterName, VersionRow]]
) -> list[EventRow]:
    """Move `main` to versions that were just made, in the order given, with a few statements for all.

    The caller holds the locks on their adapters, and inserts the events returned.
    """
    ids = {"ids": sorted({version.adapter_id for _, version in versions})}
    before = {row.adapter_id: row for row in session.exec(_NEWEST, params=ids)}
    pointers = {adapter_id: (row.version_id, row.generation, row.moved_at) for adapter_id, row in before.items()}
    moves, events = [], []
    for name, version in versions:
        from_id, generation, moved_at = pointers.get(version.adapter_id, (None, 0, None))
        at = _next_time(moved_at)
        pointers[version.adapter_id] = (version.id or 0, generation + 1, at)
        moves.append(
            AliasMoveRow(
                adapter_id=version.adapter_id, alias=names.NEWEST, generation=generation + 1, at=at,
                actor=actor.identity, token_id=actor.token_id, from_version_id=from_id, to_version_id=version.id,
                reason=PUSHED, evidence=[],
            )
        )  # fmt: skip
        detail = {"to": version.number, "digest": version.digest, "generation": generation + 1, "reason": PUSHED}
        events.append(audit.build(session, actor, EventType.ALIAS_MOVE, f"{name}:{names.NEWEST}", detail))
    values = [
        {
            "adapter_id": adapter_id, "alias": names.NEWEST, "version_id": version_id, "generation": generation,
            "moved_at": at, "moved_by": actor.identity, "reason": PUSHED,
        }
        for adapter_id, (version_id, generation, at) in sorted(pointers.items())
    ]  # fmt: skip
    db.upsert(session, AliasRow, values, on_conflict=_MOVED_COLUMNS, returning=(col(AliasRow.adapter_id),))
    db.bulk_insert(session, moves)
    failpoints.reach("alias.swapped")
    return events


def rollback(
    session: Session, actor: Actor, name: AdapterName, alias: str, *,
    to: Selector | None = None, expected_generation: int | None = None, reason: str = "",
) -> AliasView:  # fmt: skip
    """Point `alias` at what it held before, or at `to`. A version that it never held passes the gate as in `move`."""
    actor.require(Scope.PROMOTE, name)
    _refuse_main(names.alias(alias))
    row = _find_row(session, actor, name, alias)
    moves = _list_moves(session, row)
    expected = row.generation if expected_generation is None else expected_generation
    if to is None:
        version = _find_previous(session, name, row, moves)
    else:
        version = versions.find(session, actor, name, to)
        if version.id not in {m.to_version_id for m in moves}:
            return move(session, actor, name, alias, version, expected_generation=expected, reason=reason)
    availability.require_available(name, version)
    held_since = max(m.generation for m in moves if m.to_version_id == version.id)
    evidence = [{"check": ROLLBACK, "generation": held_since}]
    return _point(session, actor, name, alias, version, expected, reason or "rolled back", evidence)


def list_aliases(session: Session, actor: Actor, name: AdapterName) -> AliasList:
    """The aliases of an adapter, by name."""
    adapter = versions.find_adapter(session, actor, name)
    statement = (
        select(AliasRow, VersionRow.number, VersionRow.digest)
        .join(VersionRow, col(VersionRow.id) == col(AliasRow.version_id))
        .where(col(AliasRow.adapter_id) == adapter.id)
        .order_by(col(AliasRow.alias))
    )
    rows = session.exec(statement).all()
    return AliasList(items=[db.to_answer(row, AliasView, number=number, digest=digest) for row, number, digest in rows])


def show(session: Session, actor: Actor, name: AdapterName, alias: str) -> AliasView:
    """One alias of an adapter."""
    return _view(session, _find_row(session, actor, name, alias))


# ------------------------------------------------------------------ history
def list_history(
    session: Session, actor: Actor, name: AdapterName, *,
    alias: str = "", at: datetime | None = None, cursor: str = "", limit: int,
) -> History:  # fmt: skip
    """The moves of one alias or of all, newest first. With `at`, the one move per alias that was in effect then."""
    if not actor.sees(name):
        raise unknown_adapter(name)
    before, after = aliased(VersionRow), aliased(VersionRow)
    statement = (
        select(AliasMoveRow, before.number, after.number, after.digest)
        .outerjoin(before, col(before.id) == col(AliasMoveRow.from_version_id))
        .outerjoin(after, col(after.id) == col(AliasMoveRow.to_version_id))
        .join(AdapterRow, col(AdapterRow.id) == col(AliasMoveRow.adapter_id))
        .where(versions.named(name))
    )
    if alias:
        statement = statement.where(col(AliasMoveRow.alias) == alias)
    if at is not None:
        statement = statement.where(*_in_effect_at(at))
    offset = versions.parse_cursor(cursor)  # there are few moves, so an offset is good enough
    newest_first = (col(AliasMoveRow.at).desc(), col(AliasMoveRow.alias), col(AliasMoveRow.generation).desc())
    rows = session.exec(statement.order_by(*newest_first).offset(offset).limit(limit + 1)).all()
    if not rows:
        versions.find_adapter(session, actor, name)  # raises if there is no such adapter
    moves = [
        db.to_answer(move, AliasMove, from_number=before, number=number, digest=digest)
        for move, before, number, digest in rows[:limit]
    ]
    return History(name=str(name), moves=moves, next_cursor=str(offset + limit) if len(rows) > limit else "")


def _in_effect_at(at: datetime) -> tuple[ColumnElement[bool], ...]:
    if at.tzinfo is None:
        raise Invalid("REQUEST_INVALID", "at: a time needs its zone, as in 2026-05-03T14:05:00+00:00")
    try:
        at = at.astimezone(UTC)
    except OverflowError as e:
        raise Invalid("REQUEST_INVALID", "at: a time in UTC has a year from 1 to 9999") from e
    later = aliased(AliasMoveRow)
    superseded = exists().where(
        and_(
            col(later.adapter_id) == col(AliasMoveRow.adapter_id),
            col(later.alias) == col(AliasMoveRow.alias),
            col(later.generation) > col(AliasMoveRow.generation),
            col(later.at) <= at,
        )
    )
    return (col(AliasMoveRow.at) <= at, ~superseded)


# ------------------------------------------------------------------ the pointer
def _point(
    session: Session, actor: Actor, name: AdapterName, alias: str, version: VersionRow, expected: int | None,
    reason: str, evidence: list[dict[str, Any]],
) -> AliasView:  # fmt: skip
    """Move the pointer, and write its history row and its event. `Conflict` (ALIAS_MOVED)."""
    key: dict[str, Any] = {"adapter_id": version.adapter_id, "alias": alias}
    before = session.get(AliasRow, tuple(key.values()), populate_existing=True)
    generation = before.generation if before is not None else 0
    if expected is not None and expected != generation:
        raise _moved(name, alias, expected, generation)
    at = _next_time(before.moved_at if before is not None else None)
    values: dict[str, Any] = {"version_id": version.id, "generation": generation + 1, "reason": reason}
    values |= {"moved_at": at, "moved_by": actor.identity}
    if not _swap(session, key, generation, values):
        raise _moved(name, alias, generation, generation + 1)
    _refuse_deleted(session, name, version)
    move = AliasMoveRow(
        **key, generation=generation + 1, at=at, actor=actor.identity, token_id=actor.token_id,
        from_version_id=before.version_id if before is not None else None, to_version_id=version.id,
        reason=reason, evidence=evidence,
    )  # fmt: skip
    db.bulk_insert(session, [move])
    failpoints.reach("alias.swapped")
    detail = {"to": version.number, "digest": version.digest, "generation": generation + 1, "reason": reason}
    if evidence and evidence[0]["check"] == BREAK_GLASS:
        detail[BREAK_GLASS] = evidence[0]["missing"]
    audit.append(session, actor, EventType.ALIAS_MOVE, f"{name}:{alias}", detail)
    return AliasView(alias=alias, number=version.number, digest=Digest(version.digest), **values)


def _refuse_deleted(session: Session, name: AdapterName, version: VersionRow) -> None:
    """`NotFound` (VERSION_DELETED) for a version that was deleted meanwhile.

    The pointer refers to the version now, and a later deletion sees the pointer.
    """
    deleted = select(VersionRow).where(VersionRow.id == version.id, col(VersionRow.deleted_at).is_not(None))
    row = session.exec(deleted.execution_options(populate_existing=True)).first()
    if row is not None:
        availability.require_not_deleted(name, row)


def _next_time(moved_at: datetime | None) -> datetime:
    """The time of a move after one at `moved_at`: a clock that was set back must not reorder history."""
    now = db.now()
    return moved_at + TIME_STEP if moved_at is not None and moved_at >= now else now


def _swap(session: Session, key: dict[str, Any], generation: int, values: dict[str, Any]) -> bool:
    """Compare and swap in one statement; False if another transaction was first."""
    if generation == 0:
        return db.insert_new(session, AliasRow, key | values)
    statement = update(AliasRow).filter_by(**key, generation=generation).values(**values)
    return bool(session.connection().execute(statement).rowcount)


def _moved(name: AdapterName, alias: str, expected: int, actual: int) -> Conflict:
    return Conflict(
        "ALIAS_MOVED",
        f"alias '{alias}' of '{name}' is at generation {actual}, not {expected}: someone moved it",
        next_step=f"look at it again with `adapter history {name}:{alias}`",
    )


# ------------------------------------------------------------------ read
def _find_row(session: Session, actor: Actor, name: AdapterName, alias: str) -> AliasRow:
    adapter = versions.find_adapter(session, actor, name)
    row = session.get(AliasRow, (adapter.id, alias), populate_existing=True)
    if row is None:
        raise NotFound("ALIAS_UNKNOWN", f"adapter '{name}' has no alias '{alias}'")
    return row


def _view(session: Session, row: AliasRow) -> AliasView:
    version = session.get_one(VersionRow, row.version_id)
    return db.to_answer(row, AliasView, number=version.number, digest=version.digest)


def _list_moves(session: Session, row: AliasRow) -> Sequence[AliasMoveRow]:
    statement = select(AliasMoveRow).where(
        col(AliasMoveRow.adapter_id) == row.adapter_id, col(AliasMoveRow.alias) == row.alias
    )
    return session.exec(statement.order_by(col(AliasMoveRow.generation))).all()


def _find_previous(session: Session, name: AdapterName, row: AliasRow, moves: Sequence[AliasMoveRow]) -> VersionRow:
    """The version that this alias held before the current one, skipping withdrawn versions.

    Two rollbacks go back two versions: a rollback does not count as the move that brought a version.
    """
    came_from = {m.to_version_id: m.from_version_id for m in moves if not _is_rollback(m)}
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
        f"alias '{row.alias}' of '{name}' has no earlier version that is still available",
        next_step="name one with --to",
    )


def _is_rollback(move: AliasMoveRow) -> bool:
    return any(item.get("check") == ROLLBACK for item in move.evidence)


def _closed_gate(
    name: AdapterName, version: VersionRow, alias: str, missing: Sequence[Finding]
) -> Refused | Unavailable:
    """The error for a closed gate. One that only waits for large weights to be read opens by itself."""
    detail = f"version {version.number} of '{name}' may not become '{alias}': {missing[0].message}"
    detail += f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    if all(finding.code == WEIGHTS_PENDING for finding in missing):
        return Unavailable("TRY_LATER", detail, findings=missing, retry_after_seconds=PENDING_RETRY_SECONDS)
    return Refused("GATE_CLOSED", detail, findings=missing, next_step=gates.next_step(name, version, alias, missing))


def _refuse_main(alias: str) -> None:
    if alias == names.NEWEST:
        raise Refused("GATE_CLOSED", f"alias '{alias}' follows the newest version: only a push moves it")
