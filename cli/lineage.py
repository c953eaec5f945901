"""`adapter lineage`: where a version came from, or what came from it, as a tree, JSON, DOT or Mermaid.

Invariants
- A node that was drawn already is drawn once more without its branches (marked `…`), so a tree always ends.
- A parent that you may not see is its digest and nothing else.

Example
    $ adapter lineage acme/support --format mermaid
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import click

from cli import output, session
from registry.names import Ref
from registry.wire import Lineage, LineageEdge, LineageNode

SHORT_DIGEST = slice(7, 19)


@click.command()
@click.argument("ref", type=output.REF)
@click.option("--down", is_flag=True, help="What came from it, instead of where it came from.")
@click.option(
    "--format", "form", type=click.Choice(["tree", "json", "dot", "mermaid"]), default="tree", help="How to draw it."
)
@output.json_option
def lineage(ref: Ref, down: bool, form: str) -> None:
    """Draw the ancestors of a version, down to its base, or (--down) its descendants."""
    with session.registry() as registry:
        found = registry.lineage(ref, down=down)
    if form == "json":
        click.echo(found.model_dump_json(indent=2))
        return
    draw: dict[str, Callable[[], Iterator[str]]] = {
        "tree": lambda: tree(found, down=down),
        "dot": lambda: dot(found),
        "mermaid": lambda: mermaid(found),
    }
    output.answer(found, lambda: click.echo("\n".join(draw[form]())))


def label(node: LineageNode) -> str:
    if node.hidden:
        return f"(not visible to you) {node.digest[SHORT_DIGEST]}"
    if node.kind == "base":
        return f"{node.name} (base)"
    return f"{node.name}@{node.number}" if node.number else node.name or node.digest[SHORT_DIGEST]


def tree(found: Lineage, *, down: bool) -> Iterator[str]:
    """Lines of the tree, root first."""
    nodes = {node.id: node for node in found.nodes}
    branches: dict[str, list[tuple[str, LineageEdge]]] = {}
    for edge in found.edges:
        stem, tip = (edge.parent, edge.child) if down else (edge.child, edge.parent)
        branches.setdefault(stem, []).append((tip, edge))
    root = nodes[found.root]
    yield f"{output.strong(label(root))}  {output.faint(root.digest[SHORT_DIGEST])}"
    yield from _branches(found.root, "", nodes, branches, {found.root})


def _branches(
    stem: str,
    indent: str,
    nodes: dict[str, LineageNode],
    branches: dict[str, list[tuple[str, LineageEdge]]],
    drawn: set[str],
) -> Iterator[str]:
    tips = branches.get(stem, [])
    for place, (tip, edge) in enumerate(tips):
        last = place == len(tips) - 1
        node, again = nodes[tip], tip in drawn
        more = " …" if again and branches.get(tip) else ""
        short = "" if node.kind == "base" or node.hidden else output.faint("  " + node.digest[SHORT_DIGEST])
        relation = "on" if node.kind == "base" else edge.relation
        yield f"{indent}{'└─' if last else '├─'} {output.faint(relation)} {label(node)}{short}{more}"
        if not again:
            drawn.add(tip)
            yield from _branches(tip, indent + ("   " if last else "│  "), nodes, branches, drawn)


def dot(found: Lineage) -> Iterator[str]:
    """Graphviz; arrows lead from parent to child."""
    places = _places(found)
    yield "digraph lineage {"
    yield "  rankdir=LR; node [shape=box, fontname=sans];"
    for node in found.nodes:
        look = ", style=rounded" if node.kind == "base" else ", style=dashed" if node.hidden else ""
        yield f'  {places[node.id]} [label="{_quoted(label(node))}"{look}];'
    for edge in found.edges:
        yield f'  {places[edge.parent]} -> {places[edge.child]} [label="{_quoted(edge.relation)}"];'
    yield "}"


def mermaid(found: Lineage) -> Iterator[str]:
    """A Mermaid flowchart; arrows lead from parent to child."""
    places = _places(found)
    yield "flowchart LR"
    for node in found.nodes:
        opening, closing = ("([", "])") if node.kind == "base" else ("[", "]")
        yield f'  {places[node.id]}{opening}"{_quoted(label(node))}"{closing}'
    for edge in found.edges:
        yield f"  {places[edge.parent]} -->|{_quoted(edge.relation)}| {places[edge.child]}"


def _places(found: Lineage) -> dict[str, str]:
    return {node.id: f"n{place}" for place, node in enumerate(found.nodes)}


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', "'")
