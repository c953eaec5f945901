"""REST schemas of lineage: a graph of versions, bases and declared inputs."""

from registry.api.models import Response


class LineageNode(Response):
    """A node of the lineage graph: a version, base, data set, run or code."""

    id: str
    """Digest of a version; for others the kind and a name, such as `base:llama-3.1-8b`."""
    kind: str
    """`version`, `base`, `dataset`, `run` or `code`."""
    name: str = ""
    """Name for people. Empty for a hidden parent."""
    number: int | None = None
    """Number of the version in its adapter; null for other kinds."""
    digest: str = ""
    """Digest of the version or data set. Empty if there is none."""
    hidden: bool = False
    """Whether this is a parent that the caller may not see: only its digest is shown."""
    uri: str = ""
    """Where a data set, run or repository is."""
    withdrawn: str = ""
    """`yanked` or `quarantined`; empty if neither."""


class LineageEdge(Response):
    """An edge of the lineage graph, between the ids of two nodes."""

    child: str
    """`id` of the node that was made from the other."""
    parent: str
    """`id` of the node that it was made from."""
    relation: str
    """How: `continued`, `merged`, `converted`, `adapter` (of a base), `dataset` …"""


class Lineage(Response):
    """The lineage graph from `root`."""

    root: str
    """`id` of the requested node."""
    nodes: list[LineageNode]
    """Versions, bases, data sets, runs and code, each once."""
    edges: list[LineageEdge]
    """Edges from child to parent, between the ids of two nodes."""
    truncated: bool = False
    """Whether the graph has more edges than one response holds."""
