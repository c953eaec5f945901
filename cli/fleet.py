"""`adapter fleet`: which node serves which version, as the nodes report it."""

from __future__ import annotations

import click

from registry.api.serving import FleetNodes, NodeView, SlotState, SlotView
from registry.digest import Digest

from .console import output, session


@click.command(epilog=f"Slot states: {', '.join(SlotState)}.")
@click.option("--base", default="", help="Only nodes of this base.")
@click.option("--alias", default="", help="Only nodes that follow this alias.")
@click.option("--node", default="", help="Only this node.")
@click.option("--adapter", default="", metavar="NAME", help="Only this adapter.")
def fleet(base: str, alias: str, node: str, adapter: str) -> None:
    """Show which node serves which version, as reported by the nodes.

    A node without a report for a minute is lost.
    """
    with session.registry() as registry:
        nodes = registry.all_nodes(base=base, alias=alias, node=node, adapter=adapter)
    if adapter:  # a node's own reporter sees it even without a matching slot
        nodes = nodes.model_copy(update={"items": [view for view in nodes.items if view.slots]})
    output.answer(nodes, lambda: _print(nodes, narrowed=bool(base or alias or node or adapter)))


def _print(listing: FleetNodes, *, narrowed: bool) -> None:
    if not listing.items:
        unfiltered = "no node matches: `adapter fleet` without options shows every node that reported within a day"
        output.line(unfiltered if narrowed else "no node has reported yet: run `adapter agent` beside each engine")
        return
    columns = ("node", "engine", "adapter", "desired", "version", "state", "since", "last report")
    nodes = sorted(listing.items, key=lambda view: (view.node, view.engine))
    output.table(columns, [row for view in nodes for row in _rows(view)])
    for view in nodes:
        for slot in view.slots:
            if slot.reason and slot.state in (SlotState.FAILED, SlotState.REFUSED):
                output.line(f"  {view.node}: {slot.adapter}: {slot.reason}")
    for state in listing.convergence:
        verb = "node serves" if state.nodes == 1 else "nodes serve"
        followed = output.faint(f"({state.alias} of {state.base})")
        output.line(f"{state.serving} of {state.nodes} {verb} {state.adapter}@{state.number} {followed}")


def _rows(view: NodeView) -> list[tuple[str, ...]]:
    reported = output.moment(view.reported_at) + ("" if view.live else " (lost)")
    if not view.slots:
        return [(view.node, view.engine, "-", "-", "-", "idle" if view.live else "lost", "-", reported)]
    return [
        (view.node, view.engine, slot.adapter, _version(slot.desired_number, slot.desired_digest),
         _version(slot.number, slot.digest), _state(view, slot), output.moment(slot.since), reported)
        for slot in view.slots
    ]  # fmt: skip


def _state(view: NodeView, slot: SlotView) -> str:
    if not view.live:
        return f"lost ({slot.state})"
    return f"{slot.state}, unverified" if slot.state is SlotState.SERVING and not slot.verified else str(slot.state)


def _version(number: int | None, digest: Digest | None) -> str:
    return f"{f'@{number}' if number else 'gone'} {digest.hex[:8]}" if digest else "-"
