"""Lineage: what a version came from, and what came from it, as far as the actor may see.

Invariants
- One recursive statement walks the edges; lineage cannot form a cycle, because a digest covers its parents.
- A parent that the actor may not see is its digest and nothing else, and nothing beyond it is told.
- A child that the actor may not see is not told of at all.

Example
    >>> lineage.up(session, actor, name, 3).edges[0].relation
    'continued'
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

from sqlmodel import Session, col, select

from registry.errors import NotFound
from registry.manifest import Edge, Relation
from registry.names import AdapterName, Selector
from registry.server import catalog
from registry.server.actors import Actor
from registry.server.tables import AdapterRow, BaseRow, EdgeRow, VersionRow
from registry.wire import Lineage, LineageEdge, LineageNode

EDGES_LIMIT = 5000
_Triple = tuple[str, str, str]


def up(session: Session, actor: Actor, name: AdapterName, selector: Selector) -> Lineage:
    """The ancestors of a version, and the bases of all that are seen."""
    root = catalog.find(session, actor, name, selector)
    walk = (
        select(EdgeRow.child_id, EdgeRow.parent_digest, EdgeRow.relation)
        .where(col(EdgeRow.child_id) == root.id)
        .cte("walk", recursive=True)
    )
    further = (
        select(EdgeRow.child_id, EdgeRow.parent_digest, EdgeRow.relation)
        .join(VersionRow, col(VersionRow.id) == col(EdgeRow.child_id))
        .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
        .join(walk, walk.c.parent_digest == col(VersionRow.digest))
        .where(catalog.visible(actor))
    )
    walk = walk.union(further)
    statement = (
        select(VersionRow.digest, walk.c.parent_digest, walk.c.relation)
        .join(VersionRow, col(VersionRow.id) == walk.c.child_id)
        .limit(EDGES_LIMIT)
    )
    return _told(session, actor, name, root, session.exec(statement).all())


def down(session: Session, actor: Actor, name: AdapterName, selector: Selector) -> Lineage:
    """The descendants of a version that the actor may see."""
    root = catalog.find(session, actor, name, selector)
    child = (
        select(VersionRow.digest.label("digest"), EdgeRow.parent_digest, EdgeRow.relation)  # type: ignore[attr-defined]
        .join(EdgeRow, col(EdgeRow.child_id) == col(VersionRow.id))
        .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
        .where(catalog.visible(actor))
    )
    walk = child.where(col(EdgeRow.parent_digest) == root.digest).cte("walk", recursive=True)
    walk = walk.union(child.join(walk, walk.c.digest == col(EdgeRow.parent_digest)))
    statement = select(walk.c.digest, walk.c.parent_digest, walk.c.relation).limit(EDGES_LIMIT)
    return _told(session, actor, name, root, session.exec(statement).all())


def _told(session: Session, actor: Actor, name: AdapterName, root: VersionRow, rows: Iterable[_Triple]) -> Lineage:
    edges = sorted({(child, parent, relation) for child, parent, relation in rows})
    digests = {root.digest} | {child for child, _, _ in edges} | {parent for _, parent, _ in edges}
    statement = (
        select(VersionRow, AdapterRow, BaseRow.name)
        .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
        .join(BaseRow, col(BaseRow.id) == col(VersionRow.base_id))
        .where(col(VersionRow.digest).in_(digests), catalog.visible(actor))
        .order_by(col(VersionRow.id).desc())
    )
    nodes: dict[str, LineageNode] = {}
    bases: set[tuple[str, str]] = set()
    fused = _fused_from(session, digests)
    for version, adapter, base in session.exec(statement):
        # The same bytes may be a version of several adapters: the first push of them gives the name.
        nodes[version.digest] = LineageNode(
            id=version.digest,
            kind="version",
            name=f"{adapter.namespace}/{adapter.name}",
            number=version.number,
            digest=version.digest,
        )
        bases.add((version.digest, base))
    nodes[root.digest] = LineageNode(
        id=root.digest, kind="version", name=str(name), number=root.number, digest=root.digest
    )
    for digest in digests - nodes.keys():
        nodes[digest] = LineageNode(id=digest, kind="version", digest=digest, hidden=True)
    for base in {base for _, base in bases} | {base for base, _ in fused}:
        nodes[f"base:{base}"] = LineageNode(id=f"base:{base}", kind="base", name=base)
    told = [LineageEdge(child=c, parent=p, relation=r) for c, p, r in edges]
    told += [LineageEdge(child=d, parent=f"base:{b}", relation="adapter") for d, b in sorted(bases)]
    told += [LineageEdge(child=f"base:{b}", parent=d, relation=Relation.FUSED) for b, d in fused]
    return Lineage(root=root.digest, nodes=[nodes[key] for key in sorted(nodes)], edges=told)


# ------------------------------------------------------------------ bases with adapters in their weights
def parents_of(session: Session, actor: Actor, bases: Sequence[BaseRow]) -> dict[str, list[Edge]]:
    """Base's name → what was fused into it. A parent that the actor may not see is its digest, without a name."""
    found = {base.name: [Edge.model_validate(edge) for edge in base.parents or ()] for base in bases}
    seen = _seen(session, actor, {edge.digest for edges in found.values() for edge in edges})
    return {
        name: [edge if edge.digest in seen else edge.model_copy(update={"name": ""}) for edge in edges]
        for name, edges in found.items()
    }


def demand_seen(session: Session, actor: Actor, digests: Iterable[str]) -> None:
    """`NotFound` (VERSION_UNKNOWN) for a parent that is no version, or none that the actor may see."""
    wanted = set(digests)
    for digest in sorted(wanted - _seen(session, actor, wanted)):
        raise NotFound("VERSION_UNKNOWN", f"parents: there is no version {digest}, or you may not see it")


def _seen(session: Session, actor: Actor, digests: Set[str]) -> set[str]:
    if not digests:
        return set()
    statement = select(VersionRow.digest).join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    return set(session.exec(statement.where(col(VersionRow.digest).in_(digests), catalog.visible(actor))).all())


def _fused_from(session: Session, digests: Set[str]) -> list[tuple[str, str]]:
    """(base, version) for every base into whose weights one of these versions was fused."""
    rows = session.exec(select(BaseRow.name, BaseRow.parents)).all()
    return sorted((name, edge["digest"]) for name, edges in rows for edge in edges or () if edge["digest"] in digests)
