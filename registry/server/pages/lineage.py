"""The page of a version's lineage: a graph whose nodes are links, and the same as a list."""

from collections import defaultdict

from fastapi import Request, Response
from markupsafe import Markup

from registry.api.lineage import Lineage, LineageNode
from registry.errors import NotFound
from registry.lineage import diagrams
from registry.server.catalog import lineage, versions
from registry.server.http.dependencies import VERSION, NameDep, SelectorDep, SessionDep
from registry.server.pages.rendering import (
    PRIVATE,
    SECURITY_HEADERS,
    adapter_path,
    base_path,
    create_router,
    render,
)
from registry.server.pages.sessions.visitors import VisitorDep

router = create_router()
NODES_SHOWN = 100
EDGES_SHOWN = 50


@router.get(VERSION + "/lineage")
def show_lineage(
    request: Request, session: SessionDep, visitor: VisitorDep, name: NameDep, selector: SelectorDep
) -> Response:
    """Show what a version was made from, and what was made from it."""
    version = versions.find(session, visitor.actor, name, selector)
    upwards = lineage.ancestors(session, visitor.actor, name, version.number)
    downwards = lineage.descendants(session, visitor.actor, name, version.number)
    graph = _join(upwards, downwards)
    drawn = _nearest(graph, NODES_SHOWN)
    titles = {node.id: node_title(node) for node in graph.nodes}
    paths = {node.id: _node_path(node, with_bases=visitor.signed_in) for node in graph.nodes}
    from_versions = {node.id for node in downwards.nodes if node.kind == "version"}
    drawing = Markup("\n".join(diagrams.svg(drawn, paths)))  # noqa: S704  # every text in it is escaped
    return render(
        request, "lineage.html", title=f"Lineage of {name}@{version.number}", name=name, number=version.number,
        graph=graph, drawn=drawn, shown=EDGES_SHOWN, drawing=drawing, titles=titles, paths=paths,
        sides=(
            ("Made from", upwards.edges),
            ("Made into", [e for e in downwards.edges if e.child != graph.root and e.parent in from_versions]),
        ),
    )  # fmt: skip


EXPORTS = {
    "svg": ("image/svg+xml", diagrams.svg), "mermaid": ("text/plain", diagrams.mermaid),
    "dot": ("text/plain", diagrams.dot),
}  # fmt: skip
"""Ending of the file → its media type, and what writes it."""


@router.get(VERSION + "/lineage.{ending}")
def export_lineage(
    session: SessionDep, visitor: VisitorDep, name: NameDep, selector: SelectorDep, ending: str
) -> Response:
    """Download the graph of a version's lineage as a file."""
    if ending != "json" and ending not in EXPORTS:
        raise NotFound("ROUTE_UNKNOWN", f"lineage is exported as json, {', '.join(EXPORTS)}")
    version = versions.find(session, visitor.actor, name, selector)
    graph = _join(
        lineage.ancestors(session, visitor.actor, name, version.number),
        lineage.descendants(session, visitor.actor, name, version.number),
    )
    if ending == "json":
        media_type, text = "application/json", graph.model_dump_json(indent=2)
    else:
        media_type, write = EXPORTS[ending]
        text = "\n".join(write(graph)) + "\n"
    file = f"{name.namespace}-{name.name}-{version.number}.{ending}"
    headers = SECURITY_HEADERS | PRIVATE | {"Content-Disposition": f'attachment; filename="{file}"'}
    return Response(text, headers=headers, media_type=media_type)


def _join(upwards: Lineage, downwards: Lineage) -> Lineage:
    nodes = {node.id: node for node in (*upwards.nodes, *downwards.nodes)}
    edges = {(edge.child, edge.parent, edge.relation): edge for edge in (*upwards.edges, *downwards.edges)}
    truncated = upwards.truncated or downwards.truncated
    return Lineage(root=upwards.root, nodes=list(nodes.values()), edges=list(edges.values()), truncated=truncated)


def node_title(node: LineageNode) -> str:
    """What a node is called: `acme/support@3`, a base, or a data set."""
    if node.hidden:
        return f"{node.digest[:19]}… (you may not see it)"
    return f"{node.name}@{node.number}" if node.number else node.name or node.uri or node.digest or node.id


def _node_path(node: LineageNode, *, with_bases: bool) -> str:
    if node.number and not node.hidden:
        return adapter_path(node.name, node.number)
    return base_path(node.name) if node.kind == "base" and with_bases else ""


def _nearest(graph: Lineage, limit: int) -> Lineage:
    """The part of the graph that is nearest to its root."""
    adjacent: dict[str, list[str]] = defaultdict(list)
    for edge in graph.edges:
        adjacent[edge.child].append(edge.parent)
        adjacent[edge.parent].append(edge.child)
    selected, border = {graph.root}, [graph.root]
    while border and len(selected) < limit:
        border = [node for near in border for node in adjacent[near] if node not in selected]
        border = list(dict.fromkeys(border))[: limit - len(selected)]
        selected.update(border)
    nodes = [node for node in graph.nodes if node.id in selected]
    edges = [edge for edge in graph.edges if edge.child in selected and edge.parent in selected]
    return Lineage(root=graph.root, nodes=nodes, edges=edges)
