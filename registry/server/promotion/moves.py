"""Moves of aliases: promotions and rollbacks, and `main`. The only place that changes where an alias points.

- Aliases move in groups, with a few statements for all, and each move has its own outcome. One move is a group of one.
- A move is one transaction: the pointer (compare-and-swap on its generation), its history row, its event.
- `main` moves only when a push creates a version. Every other move passes the gate of its alias; going back to a
  version that the alias has held needs no new evidence, but never leads to a withdrawn version.
- A generation is never used twice, not even after a deletion (`alias_deletion`). History rows never change, and the
  times of an alias's moves strictly grow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import SQLColumnExpression, func, literal_column
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from registry import names
from registry.api import aliases as views
from registry.digest import Digest
from registry.errors import Conflict, Invalid, NotFound, Refused, RegistryError, TooLarge, Unavailable
from registry.evaluation.verdicts import WEIGHTS_PENDING
from registry.events import EventType
from registry.findings import Finding
from registry.names import AdapterName, Alias, Ref, Selector
from registry.roles import Scope
from registry.server import audit, failpoints
from registry.server.actors import Actor
from registry.server.catalog import availability, version_groups
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import AliasMoveRow, AliasRow, EventRow, VersionRow
from registry.server.promotion import aliases, gates
from registry.server.promotion.aliases import PastMove
from registry.server.promotion.group import Member, only, results_of, without_error

ALIASES_LIMIT = 1000
"""Aliases of an adapter: every list of adapters shows them."""
BREAK_GLASS = "break_glass"
"""Marks a move through a closed gate in the evidence, with what was missing."""
PENDING_RETRY_SECONDS = 2
PUSHED = "pushed"
"""The reason of a move of `main`."""
TIME_STEP = timedelta(microseconds=1)
"""How much later a move is than the one before if the clock was set back."""
_NEWEST = (
    select(AliasRow)
    .where(any_of(col(AliasRow.adapter_id), parameter="ids"), col(AliasRow.alias) == names.NEWEST)
    .execution_options(populate_existing=True)
)
_POINTERS = (
    select(AliasRow, VersionRow.number)
    .join(VersionRow, col(VersionRow.id) == col(AliasRow.version_id))
    .where(any_of(col(AliasRow.adapter_id), parameter="ids"), any_of(col(AliasRow.alias), parameter="aliases"))
    .execution_options(populate_existing=True)
)
# Of deletions alone: a move that was committed since the pointers were read would pass for one.
_DELETED = (
    select(AliasMoveRow.adapter_id, AliasMoveRow.alias, func.max(AliasMoveRow.generation), func.max(AliasMoveRow.at))
    .where(col(AliasMoveRow.to_version_id).is_(None))
    .where(any_of(col(AliasMoveRow.adapter_id), parameter="ids"), any_of(col(AliasMoveRow.alias), parameter="aliases"))
    .group_by(col(AliasMoveRow.adapter_id), col(AliasMoveRow.alias))
)
_BY_ID = (
    select(VersionRow)
    .options(*(defer(cast(Any, column)) for column in (VersionRow.facts, VersionRow.manifest)))
    .where(any_of(col(VersionRow.id), parameter="ids"))
)
_LOCKED = (
    select(
        VersionRow.id,
        VersionRow.deleted_at,
        select(func.count()).where(AliasRow.adapter_id == VersionRow.adapter_id).scalar_subquery(),
    )
    .where(any_of(col(VersionRow.id), parameter="ids"))
    .order_by(col(VersionRow.id))
    .with_for_update(read=True)
)
_MOVED_COLUMNS: tuple[tuple[str, SQLColumnExpression[Any]], ...] = tuple(
    (name, literal_column(f"excluded.{name}"))
    for name in ("version_id", "generation", "moved_at", "moved_by", "reason")
)
_IS_NEXT = col(AliasRow.generation) == literal_column("excluded.generation - 1")
_KEY = (col(AliasRow.adapter_id), col(AliasRow.alias))
Key = tuple[int, str]


@dataclass
class Move(Member):
    """A requested move of `alias` of `name` to a version, or with `is_rollback` back to one it held (None: the last).

    None as `expected_generation` accepts any generation, 0 only a new alias. With `break_glass` an owner passes a
    closed gate; the move needs a reason and is marked in the history and the audit log.
    """

    name: AdapterName
    alias: str
    to: VersionRow | Selector | None
    expected_generation: int | None = None
    reason: str = ""
    break_glass: bool = False
    is_rollback: bool = False
    before: AliasRow | None = field(default=None, init=False)
    deleted_at: tuple[int, datetime] | None = field(default=None, init=False)
    """The generation and the time at which an alias was deleted that moves again now."""
    from_number: int | None = field(default=None, init=False)
    evidence: list[dict[str, Any]] = field(default_factory=list, init=False)
    result: views.MovedAlias | None = field(default=None, init=False)
    version: VersionRow = field(init=False)
    """The version to point at, once it was found."""

    @property
    def ref(self) -> Ref | None:
        """What to look up first; a rollback without a version begins at the one that the alias points at."""
        if isinstance(self.to, VersionRow):
            return None
        return Ref(self.name, Alias(self.alias) if self.to is None else self.to)

    @property
    def key(self) -> Key:
        """The key of the alias's row."""
        return self.version.adapter_id, self.alias

    @property
    def generation(self) -> int:
        """The generation that the alias is at now; that of its deletion for a deleted one."""
        if self.before is not None:
            return self.before.generation
        return self.deleted_at[0] if self.deleted_at is not None else 0

    @property
    def is_expected(self) -> bool:
        """Whether the alias is at the generation that the client has seen; 0 also stands for a deleted alias."""
        accepted = {None, self.generation} if self.before is not None else {None, self.generation, 0}
        return self.expected_generation in accepted

    def show(self, at: datetime, by: str, *, moved: bool) -> views.MovedAlias:
        """Set the result: where the alias points now."""
        self.result = views.MovedAlias(
            name=str(self.name), alias=self.alias, number=self.version.number, digest=Digest(self.version.digest),
            generation=self.generation + moved, moved_at=at, moved_by=by, reason=self.reason,
            from_number=self.from_number, moved=moved,
        )  # fmt: skip
        return self.result


def move_alias(session: Session, actor: Actor, move: Move) -> views.MovedAlias:
    """`move_aliases` for a group of one. Raises its error."""
    return only(move_aliases(session, actor, [move]))


def move_aliases(
    session: Session, actor: Actor, moves: Sequence[Move], *, atomic: bool = False, dry_run: bool = False
) -> list[views.MovedAlias | RegistryError]:
    """Point aliases at versions through their gates; return where each points then, or why it did not move, in order.

    `Conflict` (ALIAS_MOVED), `Refused` (GATE_CLOSED, with what is missing as findings; YANKED, QUARANTINED),
    `Unavailable` (TRY_LATER: only the weights are pending), `Denied`. An alias that points there already does not move.
    `atomic`: an error of one lets all fail, and none moves. `dry_run`: check everything and move nothing.
    """
    for move in moves:
        with move.collect_error():
            _check_request(actor, move)
    _find_versions(session, actor, without_error(moves), lock_names=not dry_run)
    _find_pointers(session, without_error(moves))
    _choose_earlier(session, [move for move in without_error(moves) if move.is_rollback])
    pending = []
    for move in without_error(moves):
        with move.collect_error():
            if not _is_there(move):
                pending.append(move)
    _pass_gates(session, actor, without_error(pending))
    pending = without_error(pending)
    if dry_run:
        for move in pending:
            move.show(db.now(), actor.identity, moved=True)
    elif pending and not (atomic and len(without_error(moves)) < len(moves)):
        _write(session, actor, pending)
        if atomic and len(without_error(moves)) < len(moves):  # a race: nothing of it stays
            session.rollback()
    return results_of(moves, atomic=atomic)


def _check_request(actor: Actor, move: Move) -> None:
    actor.require(Scope.PROMOTE, move.name)
    if names.alias(move.alias) == names.NEWEST:
        raise Refused("GATE_CLOSED", f"alias '{move.alias}' follows the newest version: only a push moves it")
    if move.break_glass:
        actor.require(Scope.ADMIN, move.name)
        if not move.reason.strip():
            raise Invalid("REQUEST_INVALID", "reason: break-glass needs a reason")


def _find_versions(session: Session, actor: Actor, moves: Sequence[Move], *, lock_names: bool) -> None:
    """Set the versions. The names stay until the pointers have moved: the rights and gates belong to the namespace."""
    refs = [move.ref for move in moves if move.ref is not None]
    rows = version_groups.find_all(session, actor, refs, lock_names=lock_names)
    for move in moves:
        with move.collect_error():
            if isinstance(move.to, VersionRow):
                move.version = move.to
            elif move.ref is not None:
                row = rows[move.ref]
                if isinstance(row, RegistryError):
                    raise row
                move.version = row
                if move.to is not None:
                    availability.require_not_deleted(move.name, row)


def _find_pointers(session: Session, moves: Sequence[Move]) -> None:
    """Set where each alias points now. `Invalid` for an alias that is named twice."""
    if not moves:
        return
    pointers = {
        (row.adapter_id, row.alias): (row, number) for row, number in session.exec(_POINTERS, params=_of(moves))
    }
    keys: set[Key] = set()
    for move in moves:
        move.before, move.from_number = pointers.get(move.key, (None, None))
        if move.key in keys:
            move.error = Invalid("REQUEST_INVALID", f"items: '{move.name}:{move.alias}' is named twice")
        keys.add(move.key)
    if new := {move.key: move for move in without_error(moves) if move.before is None}:
        for adapter_id, alias, generation, at in session.connection().execute(_DELETED, _of([*new.values()])):
            if (adapter_id, alias) in new:
                new[adapter_id, alias].deleted_at = (generation, at)


def _of(moves: Sequence[Move]) -> dict[str, Any]:
    ids, aliases = {move.version.adapter_id for move in moves}, {move.alias for move in moves}
    return {"ids": sorted(ids), "aliases": sorted(aliases)}


def _is_there(move: Move) -> bool:
    """Whether the alias is there already. Errors if the version is withdrawn or the alias at another generation."""
    availability.require_available(move.name, move.version)
    if not move.is_expected:
        raise moved_error(move.name, move.alias, move.expected_generation or 0, move.generation)
    if move.is_rollback or move.before is None or move.before.version_id != move.version.id:
        return False
    move.reason = move.before.reason
    move.show(move.before.moved_at, move.before.moved_by, moved=False)
    return True


# ------------------------------------------------------------------ rollbacks and gates
def _choose_earlier(session: Session, rollbacks: Sequence[Move]) -> None:
    """Set the version that each rollback goes back to; one to a version that its alias never held is a promotion."""
    for move in rollbacks:
        if move.before is None:
            move.error = NotFound("ALIAS_UNKNOWN", f"adapter '{move.name}' has no alias '{move.alias}'")
    rollbacks = without_error(rollbacks)
    if not rollbacks:
        return
    history: dict[Key, list[PastMove]] = {move.key: [] for move in rollbacks}
    for row in aliases.read_past(session, _of(rollbacks)):
        if (row.adapter_id, row.alias) in history:
            history[row.adapter_id, row.alias].append(row)
    earlier = {row.from_version_id for rows in history.values() for row in rows if row.from_version_id is not None}
    rows = {row.id: row for row in session.exec(_BY_ID, params={"ids": sorted(earlier)})} if earlier else {}
    for move in rollbacks:
        past = history[move.key]
        with move.collect_error():
            if move.to is None:
                move.version = _find_previous(move, past, rows)
            generations = [row.generation for row in past if row.to_version_id == move.version.id]
            move.is_rollback = bool(generations)
            if generations:
                move.evidence = [{"check": aliases.ROLLBACK, "generation": max(generations)}]
                move.reason = move.reason or "rolled back"


def _find_previous(move: Move, past: Sequence[PastMove], rows: dict[int | None, VersionRow]) -> VersionRow:
    """The version that this alias held before the current one, skipping withdrawn versions."""
    for version_id in aliases.earlier_ids(move.version.id, past):
        if not availability.is_withdrawn(rows[version_id]):
            return rows[version_id]
    raise NotFound(
        "VERSION_UNKNOWN",
        f"alias '{move.alias}' of '{move.name}' has no earlier version that is still available",
        next_step="name one with --to",
    )


def _pass_gates(session: Session, actor: Actor, moves: Sequence[Move]) -> None:
    """Set the evidence on which each move passes its gate, or the error of a closed one."""
    new = [move for move in moves if not move.is_rollback]
    gathered = gates.gather_evidence(session, actor, [(move.name, move.alias, move.version) for move in new])
    for move, (gate, evidence) in zip(new, gathered, strict=True):
        missing = gate.gate.missing(evidence)
        if missing and not move.break_glass:
            step = gates.next_step(actor, move.name, move.version, move.alias, gate.gate, evidence)
            move.error = _closed_gate(move, missing, step)
            continue
        move.evidence = gates.summarize_evidence(gate.gate, evidence)
        if missing:
            move.evidence.insert(0, {"check": BREAK_GLASS, "missing": [f.code for f in missing]})


def _closed_gate(move: Move, missing: Sequence[Finding], next_step: str) -> Refused | Unavailable:
    """The error for a closed gate. One that only waits for large weights to be read opens by itself."""
    name, number = move.name, move.version.number
    detail = f"version {number} of '{name}' may not become '{move.alias}': {missing[0].message}"
    detail += f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    if all(finding.code == WEIGHTS_PENDING for finding in missing):
        return Unavailable("TRY_LATER", detail, findings=missing, retry_after_seconds=PENDING_RETRY_SECONDS)
    return Refused("GATE_CLOSED", detail, findings=missing, next_step=next_step)


def _check_count(moves: Sequence[Move], counts: Mapping[int | None, int]) -> None:
    """Set the error of moves that give an adapter too many aliases. `counts`: version → aliases of its adapter."""
    new = Counter(move.version.adapter_id for move in moves if move.before is None)
    for move in moves:
        if move.before is None and counts[move.version.id] + new[move.version.adapter_id] > ALIASES_LIMIT:
            detail = f"an adapter has at most {ALIASES_LIMIT} aliases, and '{move.name}' has no space left"
            move.error = TooLarge("QUOTA_EXCEEDED", detail, next_step="delete one: `adapter alias delete`")


# ------------------------------------------------------------------ the pointers
def _write(session: Session, actor: Actor, moves: Sequence[Move]) -> None:
    """Move the pointers, and write their history rows and events. `Conflict` (ALIAS_MOVED) for those that lost a race.

    The versions are locked first, so that a deletion sees the pointer or is seen here. Aliases are locked by name, and
    the count of an adapter's that gets another one; `main` is its first.
    """
    new = {move.version.adapter_id for move in moves if move.before is None and move.alias != names.NEWEST}
    if new:
        db.lock_names(session, *(f"aliases of {adapter_id}" for adapter_id in new))
    locked = session.exec(_LOCKED, params={"ids": sorted({move.version.id or 0 for move in moves})}).all()
    deleted = {version_id: deleted_at for version_id, deleted_at, _ in locked}
    for move in moves:
        if deleted.get(move.version.id) is not None:
            session.refresh(move.version)
            with move.collect_error():
                availability.require_not_deleted(move.name, move.version)
    _check_count(without_error(moves), {version_id: count for version_id, _, count in locked})
    moves = sorted(without_error(moves), key=lambda move: (str(move.name), move.alias))
    times = {move.key: next_time(_last_time(move)) for move in moves}
    values = [
        {
            "adapter_id": move.version.adapter_id, "alias": move.alias, "version_id": move.version.id,
            "generation": move.generation + 1, "moved_at": times[move.key], "moved_by": actor.identity,
            "reason": move.reason,
        }
        for move in moves
    ]  # fmt: skip
    swapped = db.upsert(session, AliasRow, values, on_conflict=_MOVED_COLUMNS, where=_IS_NEXT, returning=_KEY)
    rows, events = [], []
    done = {(adapter_id, alias) for adapter_id, alias in swapped}
    for move in moves:
        if move.key not in done:
            move.error = moved_error(move.name, move.alias, move.generation, move.generation + 1)
            continue
        from_id = move.before.version_id if move.before is not None else None
        row, event = _record(session, actor, move, from_id, move.generation + 1, times[move.key])
        rows.append(row)
        events.append(event)
        move.show(times[move.key], actor.identity, moved=True)
    db.bulk_insert(session, rows)
    failpoints.reach("alias.swapped")
    db.bulk_insert(session, events)


def _record(
    session: Session, actor: Actor, move: Move, from_id: int | None, generation: int, at: datetime
) -> tuple[AliasMoveRow, EventRow]:
    row = db.new_row(
        AliasMoveRow,
        adapter_id=move.version.adapter_id, alias=move.alias, generation=generation, at=at, actor=actor.identity,
        token_id=actor.token_id, from_version_id=from_id, to_version_id=move.version.id, reason=move.reason,
        evidence=move.evidence,
    )  # fmt: skip
    detail: dict[str, Any] = {"to": move.version.number, "digest": move.version.digest, "generation": generation}
    detail["reason"] = move.reason
    if move.evidence and move.evidence[0]["check"] == BREAK_GLASS:
        detail[BREAK_GLASS] = move.evidence[0]["missing"]
    return row, audit.build(session, actor, EventType.ALIAS_MOVE, f"{move.name}:{move.alias}", detail)


def _last_time(move: Move) -> datetime | None:
    if move.before is not None:
        return move.before.moved_at
    return move.deleted_at[1] if move.deleted_at is not None else None


def next_time(moved_at: datetime | None) -> datetime:
    """The time of a move after one at `moved_at`: a clock that was set back must not reorder history."""
    now = db.now()
    return moved_at + TIME_STEP if moved_at is not None and moved_at >= now else now


def moved_error(name: AdapterName, alias: str, expected: int, actual: int) -> Conflict:
    """The error for an alias that is at another generation than the client has seen."""
    return Conflict(
        "ALIAS_MOVED",
        f"alias '{alias}' of '{name}' is at generation {actual}, not {expected}: someone moved it",
        next_step=f"look at it again with `adapter history {name}:{alias}`",
    )


# ------------------------------------------------------------------ main
def follow_newest(session: Session, actor: Actor, name: AdapterName, adapter_id: int, reason: str) -> None:
    """Point `main` at the newest version that is not withdrawn, else at the newest that is not deleted.

    Nothing happens if it is there. The caller holds the adapter's lock.
    """
    candidates = select(VersionRow).where(VersionRow.adapter_id == adapter_id, col(VersionRow.deleted_at).is_(None))
    best = session.exec(candidates.order_by(availability.WITHDRAWN, col(VersionRow.number).desc()).limit(1)).first()
    if best is None:
        return
    move = Move(name, names.NEWEST, best, reason=reason)
    move.version, move.before = best, session.exec(_NEWEST, params={"ids": [adapter_id]}).first()
    if move.before is None or move.before.version_id != best.id:
        _write(session, actor, [move])
        if move.error is not None:
            raise move.error


def move_all_newest(
    session: Session, actor: Actor, created: Sequence[tuple[AdapterName, VersionRow]]
) -> list[EventRow]:
    """Move `main` to versions that were just made, in the order given, with a few statements for all.

    The caller holds the locks on their adapters, and inserts the events returned.
    """
    ids = {"ids": sorted({version.adapter_id for _, version in created})}
    before = {row.adapter_id: row for row in session.exec(_NEWEST, params=ids)}
    pointers = {adapter_id: (row.version_id, row.generation, row.moved_at) for adapter_id, row in before.items()}
    rows, events = [], []
    for name, version in created:
        from_id, generation, moved_at = pointers.get(version.adapter_id, (None, 0, None))
        at = next_time(moved_at)
        pointers[version.adapter_id] = (version.id or 0, generation + 1, at)
        move = Move(name, names.NEWEST, version, reason=PUSHED)
        move.version = version
        row, event = _record(session, actor, move, from_id, generation + 1, at)
        rows.append(row)
        events.append(event)
    values = [
        {
            "adapter_id": adapter_id, "alias": names.NEWEST, "version_id": version_id, "generation": generation,
            "moved_at": at, "moved_by": actor.identity, "reason": PUSHED,
        }
        for adapter_id, (version_id, generation, at) in sorted(pointers.items())
    ]  # fmt: skip
    db.upsert(session, AliasRow, values, on_conflict=_MOVED_COLUMNS, returning=_KEY)
    db.bulk_insert(session, rows)
    failpoints.reach("alias.swapped")
    return events
