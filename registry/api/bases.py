"""REST schemas of adding and changing base models, and of lineage.

The spec and the identity of a base are set once. Its thresholds may change.
"""

from __future__ import annotations

from pydantic import Field

from registry.api import Answer, Request
from registry.bases import BaseSpec
from registry.bases.identity import Identity
from registry.manifest import Edge


class BaseAdd(Request):
    """`identity`: which weights the base has, if somebody has read all of them. `parents`: the fused adapters."""

    spec: BaseSpec
    identity: Identity | None = None
    source: str = Field(default="", max_length=1000)
    parents: list[Edge] = Field(default=[], max_length=8)


class IdentityRequest(Request):
    """Which weights a base has: to store it, or to compare it with that of a base."""

    identity: Identity


class ThresholdsRequest(Request):
    """What smoke tests on a base use instead of the defaults; empty for the defaults."""

    thresholds: dict[str, float] = Field(max_length=50)


# ------------------------------------------------------------------ lineage
class LineageNode(Answer):
    """A node of the lineage graph: a version, base, dataset, run or code.

    `hidden`: a parent that the actor may not see; only its digest is shown. `withdrawn`: yanked or quarantined.
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
    """An edge of the lineage graph, between the ids of two nodes."""

    child: str
    parent: str
    relation: str


class Lineage(Answer):
    """The lineage graph from `root`. `truncated`: it has more nodes than one answer holds."""

    root: str
    nodes: list[LineageNode]
    edges: list[LineageEdge]
    truncated: bool = False
