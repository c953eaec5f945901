"""Lineage: what a version came from, and what came from it, as far as the actor may see.

- One recursive statement follows the edges. They cannot form a cycle, because a digest covers its parents.
- A parent that the actor may not see is shown by its digest alone, and nothing beyond it is shown. A child that the
  actor may not see is left out with all that only it leads to, as if it did not exist.
- A larger response than `EDGES_LIMIT` is truncated and says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import CTE, ColumnElement, Select, Text, case, cast, exists, func, literal, select, true
from sqlmodel import Session, col

from registry import names
from registry.api.lineage import Lineage, LineageEdge, LineageNode
from registry.lineage import BASE, CLAIMED, DATASET, kind_of
from registry.names import AdapterName, Selector
from registry.server.actors import Actor
from registry.server.catalog import base_rows, versions
from registry.server.database.expressions import RecursiveStep, build_recursive_cte, join_in_order
from registry.server.database.models import AdapterRow, BaseEdgeRow, BaseRow, EdgeRow, VersionInputRow, VersionRow

EDGES_LIMIT = 5000
"""Edges in one response, between versions, bases, data sets, runs and code."""


# ------------------------------------------------------------------ queries
def ancestors(session: Session, actor: Actor, name: AdapterName, selector: Selector) -> Lineage:
    """The ancestors of a version, the bases and inputs of the visible ones, and what was fused into those bases."""
    root = versions.find(session, actor, name, selector)
    walk = build_recursive_cte(session, select(*_edge_columns("", root.digest)), lambda walk: _up(walk, actor))
    return _build_lineage(session, actor, walk, _version_node(root, name), upwards=True)


def descendants(session: Session, actor: Actor, name: AdapterName, selector: Selector) -> Lineage:
    """The descendants of a version that the actor may see."""
    root = versions.find(session, actor, name, selector)
    seed = select(*_edge_columns("", root.digest))
    walk = build_recursive_cte(session, seed, lambda walk: _down(walk, actor))
    return _build_lineage(session, actor, walk, _version_node(root, name))


def base_lineage(session: Session, actor: Actor, name: str, *, upwards: bool) -> Lineage:
    """What was fused into a base and where that came from; or what was trained on it, and what came from that."""
    base = base_rows.find(session, names.base_name(name))
    root = LineageNode(id=BASE + base.name, kind="base", name=base.name)
    seed = select(*_edge_columns("", root.id))
    if upwards:
        seed = select(*_edge_columns(root.id, col(BaseEdgeRow.parent_digest), col(BaseEdgeRow.relation))).where(
            col(BaseEdgeRow.base_id) == base.id
        )
    walk = build_recursive_cte(session, seed, lambda walk: (_up if upwards else _down)(walk, actor))
    return _build_lineage(session, actor, walk, root, upwards=upwards)


def dataset_descendants(session: Session, actor: Actor, dataset: str) -> Lineage:
    """What was trained on a data set (a digest or a URI), or claims to be, and what came from that."""
    reference = {"digest": dataset} if dataset.startswith("sha256:") else {"uri": dataset}
    root = LineageNode(id=DATASET + dataset, kind="dataset", name=dataset, **reference)
    seed = select(*_edge_columns(root.id, col(VersionRow.digest), col(VersionInputRow.relation))).where(
        (col(VersionInputRow.digest) if "digest" in reference else col(VersionInputRow.uri)) == dataset,
        col(VersionInputRow.relation).in_(("dataset", CLAIMED)),
        col(VersionRow.id) == col(VersionInputRow.version_id),
        _is_visible(actor),
    )
    walk = build_recursive_cte(session, seed, lambda walk: _down(walk, actor))
    return _build_lineage(session, actor, walk, root)


# ------------------------------------------------------------------ the walk
def _edge_columns(near: Any, far: Any, relation: Any = "", name: Any = "", uri: Any = "") -> list[Any]:
    """The columns of an edge: from `near`, which was reached before, to `far`, which is followed next."""
    texts = {"near": near, "far": far, "relation": relation, "name": name, "uri": uri}
    return [cast(value, Text).label(name) for name, value in texts.items()]


def _is_visible(actor: Actor) -> ColumnElement[bool]:
    """The condition that the actor may see the version."""
    visible = versions.visible(actor)
    if visible.compare(true()):
        return visible
    return exists().where(col(AdapterRow.id) == col(VersionRow.adapter_id), visible).correlate(VersionRow)


def _up(walk: CTE, actor: Actor) -> Sequence[RecursiveStep]:
    """From a version to its parents, to its inputs, and to what was fused into its base."""
    version = [col(VersionRow.digest) == walk.c.far, _is_visible(actor)]
    base = literal(BASE) + col(BaseRow.name)
    made_from = (col(VersionInputRow.relation), col(VersionInputRow.name), col(VersionInputRow.uri))
    return [
        RecursiveStep(
            _edge_columns(walk.c.far, col(EdgeRow.parent_digest), col(EdgeRow.relation)),
            (VersionRow, EdgeRow),
            [*version, col(EdgeRow.child_id) == col(VersionRow.id)],
        ),
        RecursiveStep(
            _edge_columns(walk.c.far, col(VersionInputRow.node), *made_from),
            (VersionRow, VersionInputRow),
            [*version, col(VersionInputRow.version_id) == col(VersionRow.id)],
        ),
        RecursiveStep(
            _edge_columns(base, col(BaseEdgeRow.parent_digest), col(BaseEdgeRow.relation)),
            (VersionRow, BaseEdgeRow, BaseRow),
            [
                *version,
                col(BaseEdgeRow.base_id) == col(VersionRow.base_id),
                col(BaseRow.id) == col(BaseEdgeRow.base_id),
            ],
        ),
    ]


def _down(walk: CTE, actor: Actor) -> Sequence[RecursiveStep]:
    """From a version to its children, and to the bases that it was fused into; from a base to its adapters."""
    return [
        RecursiveStep(
            _edge_columns(walk.c.far, col(VersionRow.digest), col(EdgeRow.relation)),
            (EdgeRow, VersionRow),
            [col(EdgeRow.parent_digest) == walk.c.far, col(VersionRow.id) == col(EdgeRow.child_id), _is_visible(actor)],
        ),
        RecursiveStep(
            _edge_columns(walk.c.far, literal(BASE) + col(BaseRow.name), col(BaseEdgeRow.relation)),
            (BaseEdgeRow, BaseRow),
            [col(BaseEdgeRow.parent_digest) == walk.c.far, col(BaseRow.id) == col(BaseEdgeRow.base_id)],
        ),
        RecursiveStep(
            _edge_columns(walk.c.far, col(VersionRow.digest), "adapter"),
            (BaseRow, VersionRow),
            [
                func.substr(walk.c.far, 1, len(BASE)) == BASE,  # first, so that other rows are skipped cheaply
                col(BaseRow.name) == func.substr(walk.c.far, len(BASE) + 1),
                col(VersionRow.base_id) == col(BaseRow.id),
                _is_visible(actor),
            ],
        ),
    ]


def _statement(walk: CTE, actor: Actor) -> Select[Any]:
    """The edges, and the label of each far end: `namespace/name number base state`, empty for what is not visible.

    The label is one text, because for a join a planner that expects many rows would read all versions. Several adapters
    may have a version with the same digest; the first push of it gives the label.
    """
    walked = select(walk).limit(EDGES_LIMIT + 1).cte("walked")
    state = case(
        (col(VersionRow.deleted_at).is_not(None), "deleted"),
        (col(VersionRow.quarantined_at).is_not(None), "quarantined"),
        (col(VersionRow.yanked_at).is_not(None), "yanked"),
        else_="",
    )
    name = col(AdapterRow.namespace) + "/" + col(AdapterRow.name)
    label = select(name + " " + cast(VersionRow.number, Text) + " " + col(BaseRow.name) + " " + state).where(
        col(VersionRow.digest) == walked.c.far,
        col(AdapterRow.id) == col(VersionRow.adapter_id),
        versions.visible(actor),
        col(BaseRow.id) == col(VersionRow.base_id),
    )
    label = label.select_from(join_in_order(VersionRow, AdapterRow, BaseRow)).order_by(col(VersionRow.id)).limit(1)
    statement: Select[Any] = select(*walked.c, label.correlate(walked).scalar_subquery().label("label"))
    return statement


# ------------------------------------------------------------------ the response
@dataclass(slots=True)
class _Graph:
    nodes: dict[str, LineageNode] = field(default_factory=dict)
    edges: set[tuple[str, str, str]] = field(default_factory=set)

    def base(self, name: str) -> str:
        node = BASE + name
        if node not in self.nodes:  # building it again for each version would double the cost of the nodes
            self.nodes[node] = LineageNode(id=node, kind="base", name=name)
        return node


def _version_node(root: VersionRow, name: AdapterName) -> LineageNode:
    """The root under the requested name: other adapters may have the same digest."""
    return LineageNode(
        id=root.digest, kind="version", name=str(name), number=root.number, digest=root.digest,
        withdrawn="quarantined" if root.quarantined_at else "yanked" if root.yanked_at else "",
    )  # fmt: skip


def _build_lineage(session: Session, actor: Actor, walk: CTE, root: LineageNode, *, upwards: bool = False) -> Lineage:
    graph = _Graph()
    edge_rows = session.connection().execute(_statement(walk, actor)).all()
    for near, far, relation, name, uri, label in edge_rows:
        kind = kind_of(far)
        if label is not None:
            title, number, base, state = label.split(" ")
            if far not in graph.nodes:
                graph.nodes[far] = LineageNode(
                    id=far, kind=kind, name=title, number=int(number), digest=far, withdrawn=state
                )
                graph.edges.add((far, graph.base(base), "adapter"))
        elif kind == "version":
            graph.nodes[far] = LineageNode(id=far, kind=kind, digest=far, hidden=True)
        elif kind == "base":
            graph.base(far.removeprefix(BASE))
        else:
            digest = far.removeprefix(DATASET) if far.startswith(DATASET + "sha256:") else ""
            graph.nodes[far] = LineageNode(id=far, kind=kind, name=name, uri=uri, digest=digest)
        if kind_of(near) == "base":
            graph.base(near.removeprefix(BASE))
        if near:
            graph.edges.add((near, far, relation) if upwards else (far, near, relation))
    graph.nodes[root.id] = root
    edges = [LineageEdge(child=c, parent=p, relation=r) for c, p, r in sorted(graph.edges)]
    nodes = [graph.nodes[key] for key in sorted(graph.nodes)]
    return Lineage(root=root.id, nodes=nodes, edges=edges, truncated=len(edge_rows) > EDGES_LIMIT)
