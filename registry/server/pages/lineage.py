"""The page of a version's lineage: a graph whose nodes are links, and the same as a list."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from fastapi import Request, Response

from registry.api.lineage import Lineage, LineageEdge, LineageNode
from registry.server.catalog import lineage, versions
from registry.server.http.dependencies import VERSION, NameDep, SelectorDep, SessionDep
from registry.server.pages.rendering import adapter_path, base_path, create_router, render
from registry.server.sessions.visitors import VisitorDep

router = create_router()
NODES_SHOWN = 120
NODE_WIDTH, NODE_HEIGHT, COLUMN_GAP, ROW_GAP, MARGIN = 216, 46, 72, 14, 8
TEXT_LIMIT = 27
"""Letters of a name that fit into a node. The whole name is in its tooltip and in the list."""


class PlacedNode(NamedTuple):
    """A node of the drawing: its upper left corner, what it says, and where it leads ("" for nowhere)."""

    x: int
    y: int
    label: str
    title: str
    kind: str
    path: str
    classes: str


class Line(NamedTuple):
    """A curve from a parent's right side to a child's left side."""

    path: str
    title: str


@dataclass(frozen=True, slots=True)
class LineageDrawing:
    """A drawn graph. `omitted`: how many nodes it leaves out."""

    width: int
    height: int
    nodes: tuple[PlacedNode, ...]
    lines: tuple[Line, ...]
    omitted: int


@router.get(VERSION + "/lineage")
def show_lineage(
    request: Request, session: SessionDep, visitor: VisitorDep, name: NameDep, selector: SelectorDep
) -> Response:
    """Show what a version was made from, and what was made from it."""
    version = versions.find(session, visitor.actor, name, selector)
    upwards = lineage.ancestors(session, visitor.actor, name, version.number)
    downwards = lineage.descendants(session, visitor.actor, name, version.number)
    graph = _join(upwards, downwards)
    titles = {node.id: node_title(node) for node in graph.nodes}
    return render(
        request, "lineage.html", title=f"Lineage of {name}@{version.number}", name=name, number=version.number,
        graph=graph, drawing=draw(graph, with_bases=visitor.signed_in), titles=titles,
        paths={node.id: _node_path(node, with_bases=visitor.signed_in) for node in graph.nodes},
        sides=(
            ("Made from", upwards.edges[:NODES_SHOWN]),
            ("Made into", [edge for edge in downwards.edges if edge.child != graph.root][:NODES_SHOWN]),
        ),
    )  # fmt: skip


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


# ------------------------------------------------------------------ drawing
def draw(graph: Lineage, *, with_bases: bool) -> LineageDrawing:
    """Place every node in a column right of all its parents. Of a large graph the nearest nodes are drawn."""
    chosen = _nearest(graph, NODES_SHOWN)
    edges = [edge for edge in graph.edges if edge.child in chosen and edge.parent in chosen]
    columns = _columns(chosen, edges)
    places = _places(columns, edges)
    nodes = tuple(
        _place(node, *places[node.id], is_root=node.id == graph.root, with_bases=with_bases)
        for node in graph.nodes
        if node.id in chosen
    )
    titles = {node.id: node_title(node) for node in graph.nodes}
    lines = tuple(
        Line(
            _curve(places[edge.parent], places[edge.child]),
            f"{titles[edge.child]}: {edge.relation} {titles[edge.parent]}",
        )
        for edge in edges
    )
    width = 2 * MARGIN + len(columns) * (NODE_WIDTH + COLUMN_GAP) - COLUMN_GAP
    height = 2 * MARGIN + max(map(len, columns)) * (NODE_HEIGHT + ROW_GAP) - ROW_GAP
    return LineageDrawing(width, height, nodes, lines, len(graph.nodes) - len(chosen))


def _nearest(graph: Lineage, limit: int) -> set[str]:
    adjacent: dict[str, list[str]] = defaultdict(list)
    for edge in graph.edges:
        adjacent[edge.child].append(edge.parent)
        adjacent[edge.parent].append(edge.child)
    chosen, border = {graph.root}, [graph.root]
    while border and len(chosen) < limit:
        border = [node for near in border for node in adjacent[near] if node not in chosen]
        border = list(dict.fromkeys(border))[: limit - len(chosen)]
        chosen.update(border)
    return chosen


def _columns(chosen: Iterable[str], edges: list[LineageEdge]) -> list[list[str]]:
    """The nodes by column: one more than the last column of their parents. Lineage has no cycles."""
    parents: dict[str, set[str]] = {node: set() for node in sorted(chosen)}
    children: dict[str, list[str]] = defaultdict(list)
    for edge in edges:
        if edge.parent not in parents[edge.child]:
            parents[edge.child].add(edge.parent)
            children[edge.parent].append(edge.child)
    waiting = {node: len(above) for node, above in parents.items()}
    ready, columns = [node for node, count in waiting.items() if not count], []
    while ready:
        columns.append(ready)
        following = []
        for node in ready:
            for child in children[node]:
                waiting[child] -= 1
                if not waiting[child]:
                    following.append(child)
        ready = following
    return columns


def _places(columns: list[list[str]], edges: list[LineageEdge]) -> dict[str, tuple[int, int]]:
    """Node → its corner. In a column nodes have the order of their parents, so that fewer lines cross."""
    parents: dict[str, list[str]] = defaultdict(list)
    for edge in edges:
        parents[edge.child].append(edge.parent)
    places: dict[str, tuple[int, int]] = {}
    for number, column in enumerate(columns):
        x = MARGIN + number * (NODE_WIDTH + COLUMN_GAP)
        heights = {node: _mean([places[parent][1] for parent in parents[node]]) for node in column}
        for row, node in enumerate(sorted(column, key=lambda node: heights[node])):
            places[node] = (x, MARGIN + row * (NODE_HEIGHT + ROW_GAP))
    return places


def _mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def _place(node: LineageNode, x: int, y: int, *, is_root: bool, with_bases: bool) -> PlacedNode:
    title = node_title(node)
    label = title if len(title) <= TEXT_LIMIT else f"{title[: TEXT_LIMIT // 2]}…{title[-(TEXT_LIMIT // 2) :]}"
    states = {"root": is_root, "withdrawn": bool(node.withdrawn), "hidden": node.hidden, "base": node.kind == "base"}
    kind = node.withdrawn or node.kind
    classes = " ".join(state for state, holds in states.items() if holds)
    return PlacedNode(x, y, label, title, kind, _node_path(node, with_bases=with_bases), classes)


def _curve(start: tuple[int, int], end: tuple[int, int]) -> str:
    left, top = start[0] + NODE_WIDTH, start[1] + NODE_HEIGHT // 2
    right, bottom = end[0], end[1] + NODE_HEIGHT // 2
    middle = (left + right) // 2
    return f"M{left} {top}C{middle} {top} {middle} {bottom} {right} {bottom}"
