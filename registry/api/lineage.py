"""REST schemas of lineage: a graph of versions, bases and declared inputs."""

from registry.api.models import Response


class LineageNode(Response):
    """A node of the lineage graph: a version, base, data set, run or code."""

    id: str
    kind: str
    name: str = ""
    number: int | None = None
    digest: str = ""
    hidden: bool = False
    uri: str = ""
    withdrawn: str = ""


class LineageEdge(Response):
    """An edge of the lineage graph, between the ids of two nodes."""

    child: str
    parent: str
    relation: str


class Lineage(Response):
    """The lineage graph from `root`."""

    root: str
    nodes: list[LineageNode]
    edges: list[LineageEdge]
    truncated: bool = False
