"""Whether an alias may move: facts about one move in, a decision or an error out. Nothing here reads or writes.

- `main` moves only when a push creates a version. Every other move passes the gate of its alias; going back to a
  version that the alias has held needs no new evidence, but never leads to a withdrawn version.
- An alias that points there already does not move.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from registry import names
from registry.api.aliases import MovedAlias
from registry.digest import Digest
from registry.durations import relative
from registry.errors import Conflict, Invalid, NotFound, Refused, Unavailable
from registry.evaluation.gates import Evidence, Gate
from registry.evaluation.verdicts import WEIGHTS_PENDING
from registry.findings import Finding
from registry.names import AdapterName, Alias, Ref, Selector
from registry.next_steps import NextStep, StepKind
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.catalog import availability
from registry.server.database.models import VersionRow
from registry.server.promotion import aliases, gates
from registry.server.promotion.aliases import PastMove

BREAK_GLASS = "break_glass"
"""Marks a move through a closed gate in the evidence, with what was missing."""
PENDING_RETRY_SECONDS = 2
LONG_AGO = datetime.min.replace(tzinfo=UTC)
AliasKey = tuple[int, str]
"""The id of an adapter and the name of an alias."""


@dataclass(frozen=True)
class Move:
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
    creates_alias: bool = False
    """Whether a new alias is meant, even one whose name resembles another."""

    @property
    def ref(self) -> Ref | None:
        """What to look up; a rollback without a version begins at the one that the alias points at."""
        if isinstance(self.to, VersionRow):
            return None
        return Ref(self.name, Alias(self.alias) if self.to is None else self.to)


@dataclass(frozen=True)
class AliasState:
    """Where an alias points. Without a version it was deleted, at this generation, or never was: generation 0."""

    generation: int = 0
    version_id: int | None = None
    number: int | None = None
    moved_at: datetime = LONG_AGO
    moved_by: str = ""
    reason: str = ""

    def is_expected(self, generation: int | None) -> bool:
        """Whether a client has seen this state; 0 also stands for a deleted alias."""
        return generation in (None, self.generation) or (generation == 0 and self.version_id is None)


@dataclass(frozen=True)
class MoveFacts:
    """What the decision about one move depends on."""

    move: Move
    version: VersionRow
    """The version that the move names; of a rollback that names none, the one that the alias points at."""
    before: AliasState = AliasState()
    is_repeated: bool = False
    """Whether an earlier item of the same request moves the alias."""
    past: Sequence[PastMove] = ()
    """Of a rollback, the newest moves of the alias, oldest first."""
    earlier: Mapping[int | None, VersionRow] = field(default_factory=dict)
    """The versions that these moves left."""
    gate: Gate = field(default_factory=Gate)
    evidence: Evidence = field(default_factory=Evidence)
    """What the gate evaluates; empty where it is not asked (`is_return`)."""
    resembles: str = ""
    """Of a new alias, the name in use of which its own may be a wrong spelling."""


@dataclass(frozen=True)
class MoveDecision:
    """A move that may be made, or with `moves` False an alias that is there already."""

    name: AdapterName
    alias: str
    version: VersionRow
    before: AliasState = AliasState()
    reason: str = ""
    evidence: Sequence[dict[str, Any]] = ()
    moves: bool = True

    @property
    def key(self) -> AliasKey:
        """The key of the alias's row."""
        return self.version.adapter_id, self.alias

    def view(self, at: datetime, by: str) -> MovedAlias:
        """Where the alias points then."""
        return MovedAlias(
            name=str(self.name), alias=self.alias, number=self.version.number, digest=Digest(self.version.digest),
            generation=self.before.generation + self.moves, moved_at=at, moved_by=by, reason=self.reason,
            from_number=self.before.number, moved=self.moves,
        )  # fmt: skip


def check_request(actor: Actor, move: Move) -> Move:
    """The move, if this actor may ask for it. `Denied`, `NotFound`, `Refused`, `Invalid`."""
    actor.require(Scope.PROMOTE, move.name, names.alias(move.alias))
    if move.alias == names.NEWEST:
        raise Refused("GATE_CLOSED", f"alias '{move.alias}' follows the newest version: only a push moves it")
    if move.break_glass:
        actor.require(Scope.ADMIN, move.name)
        if not move.reason.strip():
            raise Invalid("REQUEST_INVALID", "reason: break-glass needs a reason")
    return move


def is_return(move: Move, version: VersionRow, past: Sequence[PastMove]) -> bool:
    """Whether a rollback leads to a version that the alias held. To one that it never held it is a promotion."""
    return move.is_rollback and (move.to is None or any(row.to_version_id == version.id for row in past))


def decide(actor: Actor, facts: MoveFacts) -> MoveDecision:
    """Decide one move. `Conflict` (ALIAS_MOVED), `NotFound`, and `Refused` or `Unavailable` at a closed gate."""
    move, before = facts.move, facts.before
    if facts.is_repeated:
        raise Invalid("REQUEST_INVALID", f"items: '{move.name}:{move.alias}' is named twice")
    if move.is_rollback and before.version_id is None:
        raise aliases.unknown_alias(move.name, str(move.alias))
    if before.version_id is None and facts.resembles and not move.creates_alias:
        raise aliases.misspelt_alias(move.name, move.alias, facts.resembles)
    version = facts.version if move.to is not None else _find_previous(facts)
    availability.require_available(move.name, version)
    if move.is_rollback and move.to is not None and before.version_id == version.id:
        return MoveDecision(move.name, move.alias, version, before, before.reason, moves=False)
    if not before.is_expected(move.expected_generation):
        raise moved_error(move.name, move.alias, move.expected_generation or 0, before)
    if is_return(move, version, facts.past):
        generation = max((row.generation for row in facts.past if row.to_version_id == version.id), default=0)
        evidence = [{"check": aliases.ROLLBACK, "generation": generation}]
        return MoveDecision(move.name, move.alias, version, before, move.reason or "rolled back", evidence)
    if before.version_id == version.id:
        return MoveDecision(move.name, move.alias, version, before, before.reason, moves=False)
    return MoveDecision(move.name, move.alias, version, before, move.reason, _pass_gate(actor, facts))


def _find_previous(facts: MoveFacts) -> VersionRow:
    """The version that the alias held before the current one, skipping withdrawn versions."""
    for version_id in aliases.earlier_ids(facts.version.id, facts.past):
        if not availability.is_withdrawn(facts.earlier[version_id]):
            return facts.earlier[version_id]
    raise NotFound(
        "VERSION_UNKNOWN",
        f"alias '{facts.move.alias}' of '{facts.move.name}' has no earlier version that is still available",
        next_step=NextStep(StepKind.CHOOSE_VERSION, str(facts.move.name), facts.move.alias),
    )


def _pass_gate(actor: Actor, facts: MoveFacts) -> list[dict[str, Any]]:
    """The evidence on which a move passes its gate. Raises the error of a closed one."""
    move, gate = facts.move, facts.gate
    missing = gate.missing(facts.evidence)
    if missing and not move.break_glass:
        step = gates.next_step(actor, move.name, facts.version, move.alias, gate, facts.evidence)
        raise _closed_gate(facts, missing, step)
    evidence = gates.summarize_evidence(gate, facts.evidence)
    return [{"check": BREAK_GLASS, "missing": [f.code for f in missing]}, *evidence] if missing else evidence


def _closed_gate(facts: MoveFacts, missing: Sequence[Finding], next_step: NextStep | None) -> Refused | Unavailable:
    """The error for a closed gate. One that only waits for large weights to be read opens by itself."""
    detail = f"version {facts.version.number} of '{facts.move.name}' may not become '{facts.move.alias}'"
    detail += f": {missing[0].message}" + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
    if all(finding.code == WEIGHTS_PENDING for finding in missing):
        return Unavailable("TRY_LATER", detail, findings=missing, retry_after_seconds=PENDING_RETRY_SECONDS)
    return Refused("GATE_CLOSED", detail, findings=missing, next_step=next_step or "")


def moved_error(name: AdapterName, alias: str, expected: int, now: AliasState) -> Conflict:
    """The error for an alias that is at another generation than the client has seen."""
    who = f"{now.moved_by or 'someone'} moved alias '{alias}' of '{name}'"
    to = f" to version {now.number}" if now.number else ""
    when = f", {relative(now.moved_at)}" if now.moved_at != LONG_AGO else ""
    return Conflict(
        "ALIAS_MOVED",
        f"{who}{to}{when}: it is at generation {now.generation}, not {expected}",
        next_step=NextStep(StepKind.SHOW_HISTORY, str(name), alias),
    )
