"""The release board: where the aliases of a list of adapters point, and what their newest versions still need."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from sqlalchemy import tuple_
from sqlmodel import Session, col, select

from registry.api.aliases import GateCheck
from registry.api.catalog import AdapterView
from registry.names import NEWEST, AdapterName, Ref
from registry.next_steps import StepKind
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.database.models import AdapterRow, AliasRow
from registry.server.promotion import gates

ALIASES_SHOWN = 8
"""Of each adapter."""
COLUMNS = 4
PRODUCTION = ("prod", "production")
"""The names of the aliases that serve customers; they come first."""


def choose_columns(adapters: Sequence[AdapterView], gated: Sequence[str]) -> list[str]:
    """The aliases that have a column: those of production, those with a gate, and those that most adapters have."""
    often = Counter(alias for adapter in adapters for alias in adapter.aliases if alias != NEWEST)
    ranked = sorted({*often, *gated}, key=lambda alias: (alias not in PRODUCTION, alias not in gated, -often[alias]))
    return ranked[:COLUMNS]


def read_generations(session: Session, adapters: Sequence[AdapterView]) -> dict[tuple[str, str], int]:
    """Adapter and alias → how often the alias has moved."""
    statement = select(AdapterRow.namespace, AdapterRow.name, AliasRow.alias, AliasRow.generation).join(
        AdapterRow, col(AdapterRow.id) == col(AliasRow.adapter_id)
    )
    pairs = [tuple(adapter.name.split("/")) for adapter in adapters]
    rows = session.exec(statement.where(tuple_(col(AdapterRow.namespace), col(AdapterRow.name)).in_(pairs)))
    return {(f"{namespace}/{name}", alias): generation for namespace, name, alias, generation in rows}


def check_newest(session: Session, actor: Actor, adapters: Sequence[AdapterView]) -> dict[str, list[GateCheck]]:
    """Adapter → what its newest version needs for its aliases, and for those with a gate of its namespace.

    Aliases that point at it already are left out.
    """
    pairs = [(AdapterName.parse(adapter.name), adapter) for adapter in adapters]
    gated = gates.find_gated_aliases(session, {name.namespace for name, _ in pairs})
    channels = [
        (Ref(name, adapter.newest), alias)
        for name, adapter in pairs
        for alias in list(dict.fromkeys([*adapter.aliases, *gated[name.namespace]]))[: ALIASES_SHOWN + 1]
        if alias != NEWEST and adapter.aliases.get(alias) != adapter.newest
    ]
    checks: dict[str, list[GateCheck]] = defaultdict(list)
    for (ref, _), check in gates.check_gates(session, actor, channels).items():
        checks[str(ref.name)].append(check)
    return checks


def may_approve(actor: Actor, adapter: str, check: GateCheck) -> bool:
    """Whether an approval of this actor is the next thing that a version needs."""
    name, step = AdapterName.parse(adapter), check.step
    if step is None or step.kind is not StepKind.APPROVE or step.ask:
        return False
    return actor.may(Scope.PROMOTE, name.namespace, name.name, check.alias)
