"""`adapter fleet`: which node serves which version, and how many of them serve what an alias points at.

Invariants
- It shows what nodes have said themselves, for as long as their leases last; what one may not see is not counted.
"""

from __future__ import annotations

import click

from registry.api.catalog import ServedOn
from registry.api.serving import FleetNodes, NodeView, SlotView
from registry.digest import Digest

from . import output, session


@click.command()
@click.option("--base", default="", help="Only nodes of this base.")
@click.option("--alias", default="", help="Only nodes that follow this alias.")
@click.option("--node", default="", help="Only this node.")
@click.option("--adapter", default="", metavar="NAME", help="Only this adapter.")
@output.json_option
def fleet(base: str, alias: str, node: str, adapter: str) -> None:
    """Show which node serves which version, as reported by the nodes.

    Slot states: serving, loading, downloaded, draining, refused, failed, absent. A node without a report for a minute
    is lost.
    """
    with session.registry() as registry:
        nodes = registry.all_nodes(base=base, alias=alias, node=node, adapter=adapter)
    if adapter:  # one's own nodes are answered in any case
        nodes = nodes.model_copy(update={"items": [view for view in nodes.items if view.slots]})
    output.answer(nodes, lambda: _print(nodes, narrowed=bool(base or alias or node or adapter)))


def _print(listing: FleetNodes, *, narrowed: bool) -> None:
    if not listing.items:
        whole = "`adapter fleet` without options shows every node that reported within a day"
        none = "no node has reported yet: run `adapter agent` beside each engine"
        click.echo(f"no node matches: {whole}" if narrowed else none)
        return
    columns = ("node", "engine", "adapter", "wanted", "version", "state", "since", "last report")
    nodes = sorted(listing.items, key=lambda view: (view.node, view.engine))
    output.table(columns, [row for view in nodes for row in _rows(view)])
    for view in nodes:
        for slot in view.slots:
            if slot.reason and slot.state in ("failed", "refused"):
                click.echo(f"  {view.node}: {slot.adapter}: {slot.reason}")
    for one in listing.convergence:
        verb = "node serves" if one.nodes == 1 else "nodes serve"
        where = output.faint(f"({one.alias} of {one.base})")
        click.echo(f"{one.serving} of {one.nodes} {verb} {one.adapter}@{one.number} {where}")


def _rows(view: NodeView) -> list[tuple[str, ...]]:
    heard = output.moment(view.heard_at) + ("" if view.live else " (lost)")
    if not view.slots:
        return [(view.node, view.engine, "-", "-", "-", "idle" if view.live else "lost", "-", heard)]
    return [
        (view.node, view.engine, slot.adapter, _version(slot.wanted_number, slot.wanted_digest),
         _version(slot.number, slot.digest), _state(view, slot), output.moment(slot.since), heard)
        for slot in view.slots
    ]  # fmt: skip


def _state(view: NodeView, slot: SlotView) -> str:
    if not view.live:
        return f"lost ({slot.state})"
    return f"{slot.state}, unverified" if slot.state == "serving" and not slot.verified else str(slot.state)


def _version(number: int | None, digest: Digest | None) -> str:
    return f"{f'@{number}' if number else 'gone'} {digest.hex[:8]}" if digest else "-"


def warn(served_on: list[ServedOn]) -> None:
    """What a command that withdraws a version says of the nodes that still have it."""
    for on in served_on:
        number = f" (@{on.number})" if on.number else ""
        click.echo(f"  still {on.state} on {on.node}, engine {on.engine}, as {on.served_name}{number}")
    if served_on:
        click.echo("  agents unload it within seconds: see `adapter fleet`")
