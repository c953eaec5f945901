"""The REST contract of lineage: nodes and edges from a version, a base or a data set on, up or down.

Invariants
- Of a parent that the actor may not see there is a digest and nothing else.
"""

from __future__ import annotations

from registry.api import Answer


class LineageNode(Answer):
    """A node of lineage: `kind` is version, base, dataset, run or code. `hidden` is a parent that the actor may not
    see: its digest and nothing else. `withdrawn`: yanked, or quarantined.
    """

    id: str
    kind: str
    name: str = ""
    number: int | None = None
    digest: str = ""
    hidden: bool = False
    uri: str = ""
    withdrawn: str = ""


class LineageEdge(Answer):
    child: str
    parent: str
    relation: str


class Lineage(Answer):
    """What was found from `root` on. `truncated`: there is more than one answer holds."""

    root: str
    nodes: list[LineageNode]
    edges: list[LineageEdge]
    truncated: bool = False
