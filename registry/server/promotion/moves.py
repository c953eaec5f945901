"""Moves of aliases: promotions and rollbacks, and `main`. The only place that changes where an alias points.

- Aliases move in groups, with a few statements for all, and each move has its own outcome. One move is a group of one.
- The facts of all are loaded, `move_decisions` decides each, and what it decided is written for all: the pointer
  (compare-and-swap on its generation), its history row, its event, in one transaction.
- A generation is never used twice, not even after a deletion (`alias_deletion`). History rows never change, and the
  times of an alias's moves strictly grow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

from sqlalchemy import SQLColumnExpression, func, literal_column
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from registry import names
from registry.api import aliases as views
from registry.errors import RegistryError, TooLarge
from registry.evaluation.gates import Evidence, Gate
from registry.events import EventType
from registry.names import AdapterName, Ref
from registry.next_steps import NextStep, StepKind
from registry.server import audit, failpoints
from registry.server.actors import Actor
from registry.server.catalog import availability, version_groups
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import AliasMoveRow, AliasRow, EventRow, VersionRow
from registry.server.outcomes import all_or_none, collect_outcomes, has_error, only, results_of
from registry.server.promotion import aliases, gates, move_decisions
from registry.server.promotion.aliases import PastMove
from registry.server.promotion.move_decisions import (
    BREAK_GLASS,
    AliasKey,
    AliasState,
    Move,
    MoveDecision,
    MoveFacts,
    is_return,
    moved_error,
)

ALIASES_LIMIT = 1000
"""Aliases of an adapter: every list of adapters shows them."""
PUSHED = "pushed"
"""The reason of a move of `main`."""
TIME_STEP = timedelta(microseconds=1)
"""How much later a move is than the one before if the clock was set back."""
_NEWEST = (
    select(AliasRow, VersionRow.number, VersionRow.skipped_by_main)
    .join(VersionRow, col(VersionRow.id) == col(AliasRow.version_id))
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


def move_alias(session: Session, actor: Actor, move: Move) -> views.MovedAlias:
    """`move_aliases` for a group of one. Raises its error."""
    return only(move_aliases(session, actor, [move]))


def move_aliases(
    session: Session, actor: Actor, moves: Sequence[Move | RegistryError], *, atomic: bool = False,
    dry_run: bool = False,
) -> list[views.MovedAlias | RegistryError]:  # fmt: skip
    """Point aliases at versions through their gates; return where each points then, or why it did not move, in order.

    `Conflict` (ALIAS_MOVED), `Refused` (GATE_CLOSED, with what is missing as findings; YANKED, QUARANTINED),
    `Unavailable` (TRY_LATER: only the weights are pending), `Denied`. `atomic`: an error of one lets all fail, and none
    moves. `dry_run`: check everything and move nothing.
    """
    requested = collect_outcomes(moves, partial(move_decisions.check_request, actor))
    facts = _load_facts(session, actor, requested, lock_names=not dry_run)
    decisions = collect_outcomes(facts, partial(move_decisions.decide, actor))
    decisions = all_or_none(decisions) if atomic else decisions
    if dry_run:
        return collect_outcomes(decisions, lambda decision: _view(actor, decision))
    moved = write(session, actor, [decision for decision in results_of(decisions) if decision.moves])
    outcomes = [
        decision if isinstance(decision, RegistryError) else moved.get(decision.key) or _view(actor, decision)
        for decision in decisions
    ]
    if atomic and has_error(moved.values()):  # a race: nothing of it stays
        session.rollback()
    return all_or_none(outcomes) if atomic else outcomes


def _view(actor: Actor, decision: MoveDecision) -> views.MovedAlias:
    """Where an alias would point, or where it is already."""
    before = decision.before
    return (
        decision.view(db.now(), actor.identity) if decision.moves else decision.view(before.moved_at, before.moved_by)
    )


# ------------------------------------------------------------------ facts
def _load_facts(
    session: Session, actor: Actor, requested: Sequence[Move | RegistryError], *, lock_names: bool
) -> list[MoveFacts | RegistryError]:
    """The facts about each move, with the same statements for any number of them.

    The names stay until the pointers have moved: the rights and gates belong to the namespace.
    """
    refs = [move.ref for move in results_of(requested) if move.ref is not None]
    rows = version_groups.find_all(session, actor, refs, lock_names=lock_names)
    pairs = collect_outcomes(requested, lambda move: (move, _require_version(move, rows)))
    moves = results_of(pairs)
    states = _load_states(session, {_key(*pair) for pair in moves})
    past = _load_past(session, {_key(*pair) for pair in moves if pair[0].is_rollback})
    earlier_ids = {row.from_version_id for rows in past.values() for row in rows if row.from_version_id is not None}
    earlier = {row.id: row for row in session.exec(_BY_ID, params={"ids": sorted(earlier_ids)})} if earlier_ids else {}
    first: dict[AliasKey, Move] = {}
    for move, version in moves:
        first.setdefault(_key(move, version), move)
    gated = [
        (move, version)
        for move, version in moves
        if first[_key(move, version)] is move and not is_return(move, version, past.get(_key(move, version), ()))
    ]
    new = [(move, version) for move, version in gated if states[_key(move, version)].version_id is None]
    resembled = aliases.find_resembled(session, [(move.name, v.adapter_id, move.alias) for move, v in new])
    gathered = gates.gather_evidence(session, actor, [(move.name, move.alias, version) for move, version in gated])
    evidence = {_key(*pair): (gate.gate, of_gate) for pair, (gate, of_gate) in zip(gated, gathered, strict=True)}

    def gather(pair: tuple[Move, VersionRow]) -> MoveFacts:
        key = _key(*pair)
        return MoveFacts(
            *pair, states[key], first[key] is not pair[0], past.get(key, ()), earlier,
            *evidence.get(key, (Gate(), Evidence())), resembled.get(key, ""),
        )  # fmt: skip

    return collect_outcomes(pairs, gather)


def _key(move: Move, version: VersionRow) -> AliasKey:
    return version.adapter_id, move.alias


def _require_version(move: Move, rows: Mapping[Ref, VersionRow | RegistryError]) -> VersionRow:
    row = move.to if isinstance(move.to, VersionRow) else rows[move.ref] if move.ref is not None else None
    if isinstance(row, RegistryError):
        raise row
    if row is None:
        raise RuntimeError(f"no version was looked up for {move.name}:{move.alias}")
    if move.to is not None:  # a rollback may begin at a deleted version
        availability.require_not_deleted(move.name, row)
    return row


def _load_states(session: Session, keys: Collection[AliasKey]) -> dict[AliasKey, AliasState]:
    """Where each of these aliases points."""
    states = dict.fromkeys(keys, AliasState())
    if not keys:
        return states
    for row, number in session.exec(_POINTERS, params=_params_of(keys)):
        states[row.adapter_id, row.alias] = _state_of(row, number)
    new = {key for key in keys if states[key].version_id is None}
    for adapter_id, alias, generation, at in session.connection().execute(_DELETED, _params_of(new)) if new else ():
        if (adapter_id, alias) in new:
            states[adapter_id, alias] = AliasState(generation, moved_at=at)
    return states


def _state_of(row: AliasRow, number: int | None = None) -> AliasState:
    return AliasState(row.generation, row.version_id, number, row.moved_at, row.moved_by, row.reason)


def _load_past(session: Session, keys: Collection[AliasKey]) -> dict[AliasKey, list[PastMove]]:
    """The newest moves of each of these aliases, oldest first."""
    past: dict[AliasKey, list[PastMove]] = {key: [] for key in keys}
    for row in aliases.read_past(session, _params_of(keys)) if keys else ():
        if (row.adapter_id, row.alias) in past:
            past[row.adapter_id, row.alias].append(row)
    return past


def _params_of(keys: Collection[AliasKey]) -> dict[str, Any]:
    return {"ids": sorted({adapter_id for adapter_id, _ in keys}), "aliases": sorted({alias for _, alias in keys})}


# ------------------------------------------------------------------ the pointers
def write(
    session: Session, actor: Actor, decisions: Sequence[MoveDecision]
) -> dict[AliasKey, views.MovedAlias | RegistryError]:
    """Move the pointers, and write their history rows and events. `Conflict` (ALIAS_MOVED) for those that lost a race.

    The versions are locked first, so that a deletion sees the pointer or is seen here. Aliases are locked by name, and
    the count of an adapter's that gets another one; `main` is its first.
    """
    if not decisions:
        return {}
    new = Counter(decision.key[0] for decision in decisions if decision.before.version_id is None)
    if counted := {d.key[0] for d in decisions if d.before.version_id is None and d.alias != names.NEWEST}:
        db.lock_names(session, *(f"aliases of {adapter_id}" for adapter_id in counted))
    locked = session.exec(_LOCKED, params={"ids": sorted({d.version.id or 0 for d in decisions})}).all()
    deleted = {version_id for version_id, deleted_at, _ in locked if deleted_at is not None}
    counts = {version_id: count for version_id, _, count in locked}

    def check_locked(decision: MoveDecision) -> MoveDecision:
        if decision.version.id in deleted:
            session.refresh(decision.version)
            availability.require_not_deleted(decision.name, decision.version)
        if decision.before.version_id is None:
            _require_space(decision.name, counts[decision.version.id] + new[decision.key[0]])
        return decision

    ordered = sorted(decisions, key=lambda decision: (str(decision.name), decision.alias))
    checked = collect_outcomes(ordered, check_locked)
    allowed = results_of(checked)
    times = {decision.key: next_time(decision.before.moved_at) for decision in allowed}
    swapped = set(_swap(session, actor, allowed, times))
    recorded = [_record(session, actor, d, times[d.key]) for d in allowed if d.key in swapped]
    db.bulk_insert(session, [row for row, _ in recorded])
    failpoints.reach("alias.swapped")
    db.bulk_insert(session, [event for _, event in recorded])

    def view(decision: MoveDecision) -> views.MovedAlias:
        if decision.key not in swapped:
            generation = decision.before.generation
            raise moved_error(decision.name, decision.alias, generation, AliasState(generation + 1))
        return decision.view(times[decision.key], actor.identity)

    return {d.key: outcome for d, outcome in zip(ordered, collect_outcomes(checked, view), strict=True)}


def _require_space(name: AdapterName, count: int) -> None:
    if count > ALIASES_LIMIT:
        detail = f"an adapter has at most {ALIASES_LIMIT} aliases, and '{name}' has no space left"
        raise TooLarge("QUOTA_EXCEEDED", detail, next_step=NextStep(StepKind.DELETE_ALIAS, str(name)))


def _swap(
    session: Session, actor: Actor, decisions: Sequence[MoveDecision], times: Mapping[AliasKey, datetime]
) -> Iterable[AliasKey]:
    """Point aliases at their versions; return those that were at the generation that was decided upon."""
    values = [
        {
            "adapter_id": decision.version.adapter_id, "alias": decision.alias, "version_id": decision.version.id,
            "generation": decision.before.generation + 1, "moved_at": times[decision.key], "moved_by": actor.identity,
            "reason": decision.reason,
        }
        for decision in decisions
    ]  # fmt: skip
    swapped = db.upsert(session, AliasRow, values, on_conflict=_MOVED_COLUMNS, where=_IS_NEXT, returning=_KEY)
    return [(adapter_id, alias) for adapter_id, alias in swapped]


def _record(session: Session, actor: Actor, decision: MoveDecision, at: datetime) -> tuple[AliasMoveRow, EventRow]:
    version, generation = decision.version, decision.before.generation + 1
    row = db.new_row(
        AliasMoveRow,
        adapter_id=version.adapter_id, alias=decision.alias, generation=generation, at=at, actor=actor.identity,
        token_id=actor.token_id, from_version_id=decision.before.version_id, to_version_id=version.id,
        reason=decision.reason, evidence=[*decision.evidence], group_id=session.info.get(audit.GROUP_ID, ""),
    )  # fmt: skip
    detail: dict[str, Any] = {"to": version.number, "digest": version.digest, "generation": generation}
    detail["reason"] = decision.reason
    if decision.before.number is not None:
        detail["from"] = decision.before.number
    if decision.evidence and decision.evidence[0]["check"] == BREAK_GLASS:
        detail[BREAK_GLASS] = decision.evidence[0]["missing"]
    return row, audit.build(session, actor, EventType.ALIAS_MOVE, f"{decision.name}:{decision.alias}", detail)


def next_time(moved_at: datetime) -> datetime:
    """The time of a move after one at `moved_at`: a clock that was set back must not reorder history."""
    now = db.now()
    return moved_at + TIME_STEP if moved_at >= now else now


# ------------------------------------------------------------------ main
def follow_newest(session: Session, actor: Actor, name: AdapterName, adapter_id: int, reason: str) -> None:
    """Point `main` at the newest version that is not withdrawn and not passed over, as far as there is one.

    Nothing happens if it is there. The caller holds the adapter's lock.
    """
    candidates = select(VersionRow).where(VersionRow.adapter_id == adapter_id, col(VersionRow.deleted_at).is_(None))
    order = (availability.WITHDRAWN, col(VersionRow.skipped_by_main), col(VersionRow.number).desc())
    best = session.exec(candidates.order_by(*order).limit(1)).first()
    if best is None:
        return
    pointer = session.exec(_NEWEST, params={"ids": [adapter_id]}).first()
    before = _state_of(*pointer[:2]) if pointer is not None else AliasState()
    if before.version_id != best.id:
        only([*write(session, actor, [MoveDecision(name, names.NEWEST, best, before, reason)]).values()])


def move_all_newest(
    session: Session, actor: Actor, created: Sequence[tuple[AdapterName, VersionRow]]
) -> dict[int, EventRow]:
    """Move `main` to versions that were just made, in the order given, with a few statements for all.

    A version that it passes over gets it only from another such one. The caller holds the locks on their adapters, and
    inserts the events returned, by the id of the version to which `main` moved.
    """
    ids = {"ids": sorted({version.adapter_id for _, version in created})}
    pointers = session.exec(_NEWEST, params=ids).all()
    states = {row.adapter_id: _state_of(row, number) for row, number, _ in pointers}
    good = {row.adapter_id for row, _, is_skipped in pointers if not is_skipped}
    if any(version.adapter_id not in states and version.number > 1 for _, version in created):  # of a released name
        deleted = session.exec(_DELETED, params=ids | {"aliases": [names.NEWEST]}).all()
        states = {key: AliasState(generation, moved_at=at) for key, _, generation, at in deleted} | states
    rows, events = [], {}
    for name, version in created:
        if version.skipped_by_main and version.adapter_id in good:
            continue
        good |= set() if version.skipped_by_main else {version.adapter_id}
        before = states.get(version.adapter_id, AliasState())
        at = next_time(before.moved_at)
        row, event = _record(session, actor, MoveDecision(name, names.NEWEST, version, before, PUSHED), at)
        states[version.adapter_id] = AliasState(before.generation + 1, version.id, version.number, at)
        rows.append(row)
        events[version.id or 0] = event
    values = [
        {
            "adapter_id": adapter_id, "alias": names.NEWEST, "version_id": states[adapter_id].version_id,
            "generation": states[adapter_id].generation, "moved_at": states[adapter_id].moved_at,
            "moved_by": actor.identity, "reason": PUSHED,
        }
        for adapter_id in sorted({version.adapter_id for _, version in created if version.id in events})
    ]  # fmt: skip
    db.upsert(session, AliasRow, values, on_conflict=_MOVED_COLUMNS, returning=_KEY)
    db.bulk_insert(session, rows)
    failpoints.reach("alias.swapped")
    return events


def find_newest(session: Session, adapter_ids: Collection[int]) -> dict[int, int]:
    """Adapter → the number of the version at which its `main` points."""
    return {row.adapter_id: number for row, number, _ in session.exec(_NEWEST, params={"ids": sorted(adapter_ids)})}
