"""Diagrams of lineage for other programs: DOT for Graphviz, Mermaid for pages. Arrows lead from parent to child.

Any text of a node may be hostile: each format escapes it by its own rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from registry.api.catalog import Lineage, LineageNode

SHORT_DIGEST = slice(7, 19)
LABEL_LIMIT = 60
_DOT_FORMS = {"base": "component", "dataset": "cylinder", "run": "ellipse", "code": "note"}
_MERMAID_FORMS = {"base": ('[["', '"]]'), "dataset": ('[("', '")]'), "run": ('(["', '"])'), "code": ('>"', '"]')}
_PLAIN = re.compile(r"[^\w ./:@+=()-]")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


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
    yield "  rankdir=LR; node [shape=box, fontname=sans];"
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
