"""`adapter lineage`: the ancestors or descendants of a version, base or data set, as a tree, drawing or export.

A node that a tree shows a second time has `…` in place of its branches, so every tree ends. A parent that you may not
see is only its digest.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from registry import attestations
from registry.api.catalog import VersionView
from registry.api.lineage import Lineage, LineageEdge, LineageNode
from registry.digest import canonical_json
from registry.errors import Invalid
from registry.lineage import cyclonedx, diagrams, openlineage, slsa
from registry.names import Ref

from . import verify
from .console import arguments, output, session
from .console.options import Command

DRAWN: dict[str, Callable[[Lineage], Iterator[str]]] = {
    "dot": diagrams.dot,
    "mermaid": diagrams.mermaid,
    "svg": diagrams.svg,
}
EXPORTED: dict[str, Callable[[VersionView, Lineage], dict[str, Any]]] = {
    "cyclonedx": cyclonedx.bom,
    "openlineage": openlineage.event,
    "slsa": slsa.statement,
}


@click.command(cls=Command)
@click.argument("ref", type=arguments.REF, required=False)
@click.option("--dataset", default="", help="Show what was trained on this data set (digest or URI).")
@click.option("--base", default="", help="Start from this base model.")
@click.option("--down", is_flag=True, help="Show descendants instead of ancestors.")
@click.option(
    "--as",
    "form",
    type=click.Choice([*DRAWN, *EXPORTED]),
    help="Draw it, or export it for other programs.",
)
@click.option(
    "--signing-key",
    "key",
    type=click.Path(path_type=Path),
    help="With slsa: sign with this private key (DSSE envelope).",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file.")
def lineage(
    ref: Ref | None, dataset: str, base: str, down: bool, form: str | None, key: Path | None, out: Path | None
) -> None:
    """Show the ancestors of a version, or with --down its descendants, and those of a base or data set.

    Pass one of REF, --base or --dataset. What you may not see is left out.
    """
    if sum((ref is not None, bool(dataset), bool(base))) != 1:
        raise click.UsageError("name one thing: a REF, --dataset or --base")
    if form in EXPORTED and (ref is None or down):
        raise click.UsageError(f"--as {form} describes what one version was made from: pass a REF, without --down")
    if key is not None and form != "slsa":
        raise click.UsageError("--signing-key signs an export: --as slsa")
    signer = verify.private_key(key) if key is not None else None
    down = down or ref is None  # a base and a data set are only what others were made from
    with session.registry() as registry:
        graph = (
            registry.lineage(ref, down=down)
            if ref is not None
            else registry.lineage_of(dataset=dataset, base=base, down=down)
        )
        version = registry.version(ref) if ref is not None and form in EXPORTED else None
    if version is not None and form is not None:
        exported = EXPORTED[form](version, graph)
        text = output.json_text(exported)
        if signer is not None:
            text = attestations.sign_statement(canonical_json(exported), signer).decode()
        lines = [text]
    elif output.is_document():
        lines = [output.document_text(graph)]
    else:
        lines = list(DRAWN[form](graph) if form in DRAWN else tree(graph, down=down))
    if graph.truncated:
        output.note("truncated: the lineage is larger than one response")
    if out is not None:
        out.write_text("\n".join(map(output.unstyled, lines)) + "\n", "utf-8")
    elif version is not None or output.is_document():
        click.echo(lines[0])
    else:
        for line in lines:
            output.line(line)


def tree(graph: Lineage, *, down: bool) -> Iterator[str]:
    """Lines of the tree, root first."""
    nodes = {node.id: node for node in graph.nodes}
    if graph.root not in nodes:
        raise Invalid("REQUEST_INVALID", "the response lacks its root")
    branches: dict[str, list[tuple[str, LineageEdge]]] = {}
    for edge in graph.edges:
        parent, child = (edge.parent, edge.child) if down else (edge.child, edge.parent)
        branches.setdefault(parent, []).append((child, edge))
    for branch in branches.values():
        branch.sort(
            key=lambda pair: (_ORDER.get(nodes[pair[0]].kind, 9), pair[1].relation, nodes[pair[0]].name, pair[0])
        )
    yield output.strong(_label(nodes[graph.root])) + _details(nodes[graph.root])
    drawn = {graph.root}
    stack = [(node, edge, "", n == 0) for n, (node, edge) in enumerate(reversed(branches.get(graph.root, [])))]
    while stack:  # no recursion: a line of descent may be longer than Python's stack
        node_id, edge, indent, last = stack.pop()
        node, again = nodes[node_id], node_id in drawn
        yield (
            f"{indent}{'└─' if last else '├─'} {output.faint(_RELATIONS.get(edge.relation, edge.relation))} "
            f"{_label(node)}{_details(node)}{' …' if again and branches.get(node_id) else ''}"
        )
        if not again:
            drawn.add(node_id)
            below = indent + ("   " if last else "│  ")
            children = reversed(branches.get(node_id, []))
            stack += [(child, child_edge, below, n == 0) for n, (child, child_edge) in enumerate(children)]


_ORDER = {"version": 0, "base": 1, "dataset": 2, "run": 3, "code": 4}
_RELATIONS = {"adapter": "on", "dataset": "trained on", "claimed": "trained on (its README says)", "code": "by code"}


def _label(node: LineageNode) -> str:
    return f"{diagrams.label(node)} (base)" if node.kind == "base" else diagrams.label(node)


def _details(node: LineageNode) -> str:
    """The short digest of a version, the URI of data, and whether a version is withdrawn."""
    if node.hidden or node.kind == "base":
        return ""
    details = [node.digest[diagrams.SHORT_DIGEST]] if node.digest else []
    details += [node.uri] if node.uri and node.uri != node.name else []
    withdrawn = output.styled(f"  {node.withdrawn}", "red") if node.withdrawn else ""
    return (output.faint("  " + "  ".join(details)) if details else "") + withdrawn
