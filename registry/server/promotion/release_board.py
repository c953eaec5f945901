"""The release board: for each adapter of a list, what its newest version still needs for its aliases."""

from collections import defaultdict
from collections.abc import Sequence

from sqlmodel import Session

from registry.api.aliases import GateCheck
from registry.api.catalog import AdapterView
from registry.names import NEWEST, AdapterName, Ref
from registry.next_steps import StepKind
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.promotion import gates

ALIASES_SHOWN = 8
"""Of each adapter."""


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
