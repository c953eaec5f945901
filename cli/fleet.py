"""`adapter fleet`: which node serves which version, as the nodes report it."""

import click

from registry.api.serving import FleetNodes, NodeView, SlotState, SlotView
from registry.digest import Digest
from registry.durations import relative

from .console import output, session, tables
from .console.options import Command
from .console.tables import Column, Table

_Slot = tuple[NodeView, SlotView | None]


def _state(view: NodeView, slot: SlotView | None) -> str:
    if slot is None:
        return "idle" if view.live else "lost"
    if not view.live:
        return f"lost ({slot.state})"
    return f"{slot.state}, unverified" if slot.state is SlotState.SERVING and not slot.verified else str(slot.state)


def _version(number: int | None, digest: Digest | None) -> str:
    return f"{f'@{number}' if number else 'gone'} {digest.hex[:8]}" if digest else ""


SLOTS: Table[_Slot] = Table((
    Column("node", lambda row: row[0].node),
    Column("engine", lambda row: row[0].engine),
    Column("adapter", lambda row: row[1].adapter if row[1] else ""),
    Column("desired", lambda row: _version(row[1].desired_number, row[1].desired_digest) if row[1] else ""),
    Column("version", lambda row: _version(row[1].number, row[1].digest) if row[1] else ""),
    Column("state", lambda row: _state(*row)),
    Column("since", lambda row: row[1].since if row[1] else None),
    Column("last report", lambda row: row[0].reported_at,
           lambda row: relative(row[0].reported_at) + ("" if row[0].live else " (lost)")),
))  # fmt: skip


@click.command(cls=Command, epilog=f"Slot states: {', '.join(SlotState)}.")
@click.option("--base", default="", help="Only nodes of this base.")
@click.option("--alias", default="", help="Only nodes that follow this alias.")
@click.option("--node", default="", help="Only this node.")
@click.option("--adapter", default="", metavar="NAME", help="Only this adapter.")
@tables.prints(SLOTS)
def fleet(base: str, alias: str, node: str, adapter: str) -> None:
    """Show which node serves which version, as reported by the nodes.

    A node without a report for a minute is lost.
    """
    with session.registry() as registry:
        nodes = registry.all_nodes(base=base, alias=alias, node=node, adapter=adapter)
    if adapter:  # a node's own reporter sees it even without a matching slot
        nodes = nodes.model_copy(update={"items": [view for view in nodes.items if view.slots]})
    views = sorted(nodes.items, key=lambda view: (view.node, view.engine))
    rows: list[_Slot] = [(view, slot) for view in views for slot in view.slots or (None,)]
    unfiltered = "no node matches: `adapter fleet` without options shows every node that reported within a day"
    nothing = "no node has reported yet: run `adapter agent` beside each engine"
    empty = unfiltered if base or alias or node or adapter else nothing
    SLOTS.print(rows, document=nodes, empty=empty, below=lambda: _print_convergence(nodes))


def _print_convergence(listing: FleetNodes) -> None:
    for view in listing.items:
        for slot in view.slots:
            if slot.reason and slot.state in (SlotState.FAILED, SlotState.REFUSED):
                output.line(f"  {view.node}: {slot.adapter}: {slot.reason}")
    for state in listing.convergence:
        verb = "node serves" if state.nodes == 1 else "nodes serve"
        followed = output.faint(f"({state.alias} of {state.base})")
        output.line(f"{state.serving} of {state.nodes} {verb} {state.adapter}@{state.number} {followed}")
