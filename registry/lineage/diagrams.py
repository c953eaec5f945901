"""Diagrams of lineage: DOT for Graphviz, Mermaid for pages, SVG. Arrows lead from parent to child.

Any text of a node may be hostile: each format escapes it by its own rules.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from html import escape
from itertools import pairwise

from registry.api.lineage import Lineage, LineageEdge, LineageNode
from registry.errors import TooLarge

SHORT_DIGEST = slice(7, 19)
LABEL_LIMIT = 60
PIECES_LIMIT = 300_000
"""Pieces of arrows in an SVG, one for each column that an arrow crosses. 120 nodes never have more."""
_DOT_FORMS = {"base": "component", "dataset": "cylinder", "run": "ellipse", "code": "note"}
_MERMAID_FORMS = {"base": ('[["', '"]]'), "dataset": ('[("', '")]'), "run": ('(["', '"])'), "code": ('>"', '"]')}
_PLAIN = re.compile(r"[^\w ./:@+=()-]")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

ROW, TRACK, GAP, NODE, LETTER, MARGIN = 58.0, 22.0, 110.0, 40.0, 7.3, 16.0
_FILLS = {"version": "#eef4ff", "base": "#fff3e0", "dataset": "#e8f5e9", "run": "#f3e5f5", "code": "#eceff1"}
_STYLE = (
    "text{font:12px ui-sans-serif,system-ui,sans-serif;fill:#111} .kind{font-size:10px;fill:#666} "
    ".relation{paint-order:stroke;stroke:#fff;stroke-width:4px} rect{stroke:#8a94a6} "
    ".root rect{stroke:#1565c0;stroke-width:2} .hidden rect{stroke-dasharray:4 3} "
    ".withdrawn rect{stroke:#c62828;stroke-width:2} path{fill:none;stroke:#8a94a6} "
    ".claimed{stroke-dasharray:4 3} .tip{fill:#8a94a6;stroke:none}"
)
_ARROW = (
    '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>'
)
_SHOWN_BY_THE_NODE = frozenset({"adapter", "dataset", "run", "code"})
_Place = tuple[float, float, float]
"""Left, middle line, width."""
_Slot = tuple[str, int]
"""A node, or the track of a node, in a column."""


def label(node: LineageNode) -> str:
    """What a node is called, in one line of at most 60 characters."""
    if node.hidden:
        return f"(not visible to you) {node.digest[SHORT_DIGEST]}"
    name = _UNPRINTABLE.sub(" ", node.name) or node.digest[SHORT_DIGEST]
    if len(name) > LABEL_LIMIT:
        name = f"{name[: LABEL_LIMIT // 2]}…{name[-LABEL_LIMIT // 2 + 1 :]}"
    return f"{name}@{node.number}" if node.number else name


def remark(node: LineageNode) -> str:
    """The sort of a node that is no version, or the short digest of one; and whether it is withdrawn."""
    if node.kind != "version":
        return {"dataset": "data set", "run": "training run"}.get(node.kind, node.kind)
    return ", ".join(part for part in (node.digest[SHORT_DIGEST], node.withdrawn) if part and not node.hidden)


def dot(lineage: Lineage) -> Iterator[str]:
    """Graphviz."""
    ids = _ids(lineage)
    yield "digraph lineage {"
    yield "  rankdir=LR; node [shape=rect, fontname=sans];"
    for node in lineage.nodes:
        look = f", shape={form}" if (form := _DOT_FORMS.get(node.kind)) else ""
        look += ", style=dashed" if node.hidden else ", color=red" if node.withdrawn else ""
        yield f'  {ids[node.id]} [label="{_in_dot(label(node))}", tooltip="{_in_dot(remark(node))}"{look}];'
    for edge in lineage.edges:
        dashed = ", style=dashed" if edge.relation == "claimed" else ""
        yield f'  {ids[edge.parent]} -> {ids[edge.child]} [label="{_in_dot(edge.relation)}"{dashed}];'
    yield "}"


def mermaid(lineage: Lineage) -> Iterator[str]:
    """A Mermaid flowchart."""
    ids = _ids(lineage)
    yield "flowchart LR"
    for node in lineage.nodes:
        opening, closing = _MERMAID_FORMS.get(node.kind, ('["', '"]'))
        yield f"  {ids[node.id]}{opening}{_in_mermaid(label(node))}{closing}"
    for edge in lineage.edges:
        arrow = "-.->" if edge.relation == "claimed" else "-->"
        yield f"  {ids[edge.parent]} {arrow}|{_in_mermaid(edge.relation)}| {ids[edge.child]}"
    withdrawn = [ids[node.id] for node in lineage.nodes if node.withdrawn]
    hidden = [ids[node.id] for node in lineage.nodes if node.hidden]
    if withdrawn:
        yield "  classDef withdrawn stroke:#c00,stroke-width:2px"
        yield f"  class {','.join(withdrawn)} withdrawn"
    if hidden:
        yield "  classDef hidden stroke-dasharray:4"
        yield f"  class {','.join(hidden)} hidden"


def _ids(lineage: Lineage) -> dict[str, str]:
    return {node.id: f"n{number}" for number, node in enumerate(lineage.nodes)}


def _in_dot(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', "'")


def _in_mermaid(text: str) -> str:
    """Letters, digits and a few signs as they are, all others by their number: nothing of Mermaid's or of HTML's."""
    return _PLAIN.sub(lambda match: f"#{ord(match[0])};", text)


def svg(lineage: Lineage, paths: Mapping[str, str] | None = None) -> Iterator[str]:
    """An SVG without script: columns of nodes, parents left of their children, in lines.

    An arrow across several columns keeps to a track of its parent between the nodes, so that none runs behind a node.
    `paths`: for a page, which styles it and has links: node → where it leads.
    `TooLarge` for a graph with very long arrows.
    """
    nodes = {node.id: node for node in lineage.nodes}
    column = _column_of(lineage)
    _check_drawable(lineage, column)
    slots = _slots(lineage, column)
    widths = [
        max([max(map(_text_width, _texts(nodes[n]))) + 32 for n, c in each if column[n] == c], default=0)
        for each in slots
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
    title = f"Lineage of {escape(label(nodes[lineage.root]))}"
    size = f'width="{x - GAP + MARGIN:.0f}" height="{tallest + 2 * MARGIN:.0f}"'
    if paths is None:
        yield f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{title}</title><style>{_STYLE}</style>'
    else:
        yield f'<svg class="graph" {size} role="group" aria-label="{title}">'
    yield _ARROW
    for edge in lineage.edges:
        way = [places[edge.parent, here] for here in range(column[edge.parent], column[edge.child])]
        yield from _arrow(edge, [*way, places[edge.child, column[edge.child]]])
    for node in lineage.nodes:
        yield from _draw_node(
            node, places[node.id, column[node.id]], (paths or {}).get(node.id, ""), root=node.id == lineage.root
        )
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


def _check_drawable(lineage: Lineage, column: Mapping[str, int]) -> None:
    """Refuse a graph whose drawing would be far larger than itself: long chains on one base, or with one input."""
    pieces = sum(column[edge.child] - column[edge.parent] for edge in lineage.edges)
    if pieces > PIECES_LIMIT:
        raise TooLarge(
            "SIZE_INVALID", f"the arrows of this graph cross {pieces} columns, and at most {PIECES_LIMIT} are drawn",
            next_step="export it as JSON, DOT or Mermaid",
        )  # fmt: skip


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


def _texts(node: LineageNode) -> tuple[str, str]:
    return label(node), remark(node)


def _text_width(text: str) -> float:
    """How wide a text is drawn, in pixels: an estimate, since fonts differ. Compatibility forms count as they read."""
    return LETTER * sum(map(_letter_width, unicodedata.normalize("NFKC", text)))


def _letter_width(letter: str) -> float:
    category = unicodedata.category(letter)
    if category in ("Mn", "Me", "Cf"):
        return 0.0
    if category == "So" or unicodedata.east_asian_width(letter) in "WF":
        return 2.3
    return 1.35 if letter.isupper() or letter in "mw@%" else 1.0


def _draw_text(x: float, y: float, text: str, look: str = "") -> str:
    """A line in the middle of a node. One that is not ASCII keeps to its estimated width, whatever the font."""
    fit = "" if text.isascii() else f' textLength="{_text_width(text) or LETTER:.1f}" lengthAdjust="spacingAndGlyphs"'
    return f'<text{look} x="{x:.1f}" y="{y:.1f}" text-anchor="middle"{fit}>{escape(text)}</text>'


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
    yield f'<text class="kind relation" {where} text-anchor="middle">{escape(edge.relation)}</text>'


def _draw_node(node: LineageNode, position: _Place, path: str, *, root: bool) -> Iterator[str]:
    x, line, width = position
    states = {"root": root, "withdrawn": bool(node.withdrawn), "hidden": node.hidden, node.kind: True}
    corner = 3 if node.kind == "version" else NODE / 2
    link, end = (f'<a href="{escape(path)}">', "</a>") if path else ("", "")
    whole_name = _UNPRINTABLE.sub(" ", node.name or node.uri or node.digest)
    yield f'<g class="{escape(" ".join(state for state, holds in states.items() if holds))}">{link}'
    yield f"<title>{escape(whole_name)} ({escape(node.withdrawn or node.kind)})</title>"
    yield (
        f'<rect x="{x:.1f}" y="{line - NODE / 2:.1f}" width="{width:.1f}" height="{NODE:.0f}" '
        f'rx="{corner:.0f}" fill="{_FILLS.get(node.kind, "#fff")}"/>'
    )
    middle = x + width / 2
    for text, down, look in zip(_texts(node), (-3, 11), ("", ' class="kind"'), strict=True):
        yield _draw_text(middle, line + down, text, look)
    yield f"{end}</g>"
