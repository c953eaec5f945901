"""Lineage as an SVG: columns of nodes, parents left of their children, with no script and no link in it.

An arrow across several columns keeps to a track of its parent between the nodes, so that none runs behind a node.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import pairwise

from registry.api.catalog import Lineage, LineageEdge, LineageNode
from registry.lineage.diagrams import label, remark

ROW, TRACK, GAP, NODE, LETTER, MARGIN = 58.0, 22.0, 110.0, 40.0, 7.3, 16.0
_FILLS = {"version": "#eef4ff", "base": "#fff3e0", "dataset": "#e8f5e9", "run": "#f3e5f5", "code": "#eceff1"}
_STYLE = (
    "text{font:12px ui-sans-serif,system-ui,sans-serif;fill:#111} .r{font-size:10px;fill:#666} "
    ".w{paint-order:stroke;stroke:#fff;stroke-width:4px} rect{stroke:#8a94a6} .root{stroke:#1565c0;stroke-width:2} "
    ".hidden{stroke-dasharray:4 3} .gone{stroke:#c62828;stroke-width:2} path{fill:none;stroke:#8a94a6} "
    ".claimed{stroke-dasharray:4 3}"
)
_ARROW = (
    '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" style="fill:#8a94a6;stroke:none"/></marker></defs>'
)
_SHOWN_BY_THE_NODE = frozenset({"adapter", "dataset", "run", "code"})
_Place = tuple[float, float, float]
"""Left, middle line, width."""
_Slot = tuple[str, int]
"""A node, or the track of a node, in a column."""


def svg(lineage: Lineage) -> Iterator[str]:
    """The lines of the file."""
    nodes = {node.id: node for node in lineage.nodes}
    column = _column_of(lineage)
    slots = _slots(lineage, column)
    widths = [
        max([LETTER * len(_longest(nodes[n])) + 20 for n, c in each if column[n] == c], default=0) for each in slots
    ]
    heights = [sum(ROW if column[n] == c else TRACK for n, c in each) for each in slots]
    tallest = max(heights, default=0)
    places: dict[_Slot, _Place] = {}
    x = MARGIN
    for each, width, height in zip(slots, widths, heights, strict=True):
        top = MARGIN + (tallest - height) / 2
        for name, here in each:
            high = ROW if column[name] == here else TRACK
            places[name, here] = (x, top + high / 2, width)
            top += high
        x += width + GAP
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{x - GAP + MARGIN:.0f}" '
        f'height="{tallest + 2 * MARGIN:.0f}" role="img">'
    )
    yield f"<title>Lineage of {escape(label(nodes[lineage.root]))}</title><style>{_STYLE}</style>{_ARROW}"
    for edge in lineage.edges:
        way = [places[edge.parent, here] for here in range(column[edge.parent], column[edge.child])]
        yield from _arrow(edge, [*way, places[edge.child, column[edge.child]]])
    for node in lineage.nodes:
        yield from _draw_node(node, places[node.id, column[node.id]], root=node.id == lineage.root)
    yield "</svg>"


def _column_of(lineage: Lineage) -> dict[str, int]:
    parents: dict[str, list[str]] = {node.id: [] for node in lineage.nodes}
    children: dict[str, list[str]] = {node.id: [] for node in lineage.nodes}
    for edge in lineage.edges:
        parents[edge.child].append(edge.parent)
        children[edge.parent].append(edge.child)
    column = dict.fromkeys(parents, 0)
    waiting = {node: len(above) for node, above in parents.items()}
    ready = [node for node, count in waiting.items() if not count]
    for node in ready:  # grows while it is read: every parent comes before its children
        for child in children[node]:
            column[child] = max(column[child], column[node] + 1)
            waiting[child] -= 1
            if not waiting[child]:
                ready.append(child)
    for node, above in parents.items():
        if not above and children[node]:
            column[node] = min(column[child] for child in children[node]) - 1
    return column


def _slots(lineage: Lineage, column: dict[str, int]) -> list[list[_Slot]]:
    """What stands in each column from top to bottom: nodes, and tracks of nodes that lead further than to the next."""
    following: dict[_Slot, set[_Slot]] = {(node, here): set() for node, here in column.items()}
    for edge in lineage.edges:
        way = [(edge.parent, here) for here in range(column[edge.parent], column[edge.child])]
        for slot, next_slot in pairwise([*way, (edge.child, column[edge.child])]):
            following.setdefault(slot, set()).add(next_slot)
    slots: list[list[_Slot]] = [[] for _ in range(max(column.values(), default=-1) + 1)]
    for slot in sorted(following):
        slots[slot[1]].append(slot)
    rank_of: dict[_Slot, float] = {}
    for each in reversed(slots):  # beside what it leads to, so that fewer arrows cross
        middles = {slot: [rank_of[other] for other in following[slot]] for slot in each}
        each.sort(key=lambda slot: sum(middles[slot]) / len(middles[slot]) if middles[slot] else 0.0)
        rank_of.update((slot, n - len(each) / 2) for n, slot in enumerate(each))
    return slots


def _longest(node: LineageNode) -> str:
    return max(label(node), remark(node), key=len)


def _arrow(edge: LineageEdge, way: list[_Place]) -> Iterator[str]:
    """From the right side of the parent, straight through its tracks, to the left side of the child."""
    x, y = way[0][0] + way[0][2], way[0][1]
    curve = f"M{x:.1f} {y:.1f}"
    for start_x, middle, width in way[1:]:
        last = x, y
        bend = (start_x - x) / 2
        curve += f"C{x + bend:.1f} {y:.1f} {start_x - bend:.1f} {middle:.1f} {start_x:.1f} {middle:.1f}"
        if (start_x, middle, width) != way[-1]:
            curve += f"H{start_x + width:.1f}"
        x, y = start_x + width, middle
    (last_x, last_y), (start_x, middle, _) = last, way[-1]
    look = ' class="claimed"' if edge.relation == "claimed" else ""
    yield f'<path{look} d="{curve}" marker-end="url(#a)"/>'
    if edge.relation in _SHOWN_BY_THE_NODE:
        return
    where = f'x="{(last_x + start_x) / 2:.1f}" y="{(last_y + middle) / 2 + 3:.1f}"'
    yield f'<text class="r w" {where} text-anchor="middle">{escape(edge.relation)}</text>'


def _draw_node(node: LineageNode, position: _Place, *, root: bool) -> Iterator[str]:
    x, line, width = position
    look = "hidden" if node.hidden else "gone" if node.withdrawn else "root" if root else ""
    corner = 3 if node.kind == "version" else NODE / 2
    yield (
        f'<rect class="{look}" x="{x:.1f}" y="{line - NODE / 2:.1f}" width="{width:.1f}" height="{NODE:.0f}" '
        f'rx="{corner:.0f}" fill="{_FILLS.get(node.kind, "#fff")}"/>'
    )
    middle = x + width / 2
    yield f'<text x="{middle:.1f}" y="{line - 3:.1f}" text-anchor="middle">{escape(label(node))}</text>'
    yield f'<text class="r" x="{middle:.1f}" y="{line + 11:.1f}" text-anchor="middle">{escape(remark(node))}</text>'
