"""Bases: add, identify, show and list the models that adapters are checked against.

- Adding the same spec under a name again changes nothing; another spec, or other weights, under that name are refused.
- The exact fingerprint comes from the base's identity, never from a claim.
- Bases belong to no namespace: every token that may pull sees them, but counts only the adapters that it may see.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from datetime import datetime
from typing import Any, cast

from sqlalchemy import bindparam, func
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from registry import names
from registry.api.catalog import BaseAdd, BaseList, BaseView
from registry.bases import BaseSpec, Similarity
from registry.bases.identity import Identity
from registry.digest import Digest
from registry.errors import Conflict, NotFound
from registry.evaluation.thresholds import Thresholds
from registry.events import EventType
from registry.manifest import Edge
from registry.server import audit
from registry.server.actors import Actor
from registry.server.catalog import base_identity, versions
from registry.server.database import db
from registry.server.database.models import AdapterRow, BaseEdgeRow, BaseRow, BaseThresholdsRow, VersionRow

CACHED_SPECS = 64
_SPECS: dict[tuple[str, str, datetime], BaseSpec] = {}


# ------------------------------------------------------------------ write
def add(session: Session, actor: Actor, request: BaseAdd) -> tuple[BaseView, bool]:
    """Add a base; also says whether it is new. `Conflict` (BASE_EXISTS) for another spec or other weights."""
    name = names.base_name(request.spec.name)
    claimed = request.identity.exact if request.identity is not None else request.spec.fingerprints.exact
    spec = _with_exact(request.spec, None)
    values = {
        "name": str(name),
        "fingerprint": str(spec.fingerprint),
        "spec": spec.model_dump(mode="json"),
        "source": request.source,
        "created_at": db.now(),
        "created_by": actor.identity,
        "parents": [edge.model_dump(mode="json") for edge in request.parents] or None,
    }
    _require_visible(session, actor, {edge.digest for edge in request.parents})
    created = db.insert_new(session, BaseRow, values)
    base = find(session, name)
    if created:
        add_parents(session, base, request.parents)
        audit.append(session, actor, EventType.BASE_ADD, str(name), {"fingerprint": base.fingerprint})
    elif load_spec(base) != spec:
        raise Conflict(
            "BASE_EXISTS",
            f"base '{name}' exists with fingerprint {base.fingerprint} and another spec than this one "
            f"(fingerprint {spec.fingerprint})",
            next_step="add it under another name: a base never changes under its adapters",
        )
    if request.identity is not None:
        base_identity.store_identity(session, actor, base, request.identity, new=created)
    elif claimed is not None:
        base_identity.require_same_weights(session, base, claimed)
    return _view(session, actor, base), created


def identify(session: Session, actor: Actor, name: str, identity: Identity) -> BaseView:
    """Store which weights the base has. `Conflict` (BASE_EXISTS) if it is known to have others."""
    base = find(session, names.base_name(name))
    base_identity.store_identity(session, actor, base, identity)
    return _view(session, actor, base)


def set_thresholds(session: Session, actor: Actor, name: str, thresholds: dict[str, float]) -> BaseView:
    """Override thresholds of the smoke tests on this base. `Invalid` names an unknown field."""
    base = find(session, names.base_name(name))
    Thresholds.with_overrides(thresholds)
    row = BaseThresholdsRow(base_id=base.id or 0, thresholds=thresholds, set_at=db.now(), set_by=actor.identity)
    session.merge(row)
    detail = {field: f"{value:g}" for field, value in thresholds.items()}
    audit.append(session, actor, EventType.BASE_THRESHOLDS, base.name, detail)
    session.flush()
    return _view(session, actor, base)


def add_parents(session: Session, base: BaseRow, parents: Iterable[Edge]) -> None:
    """The rows of what was fused into a base, for lineage. Repeating it changes nothing."""
    for digest, relation in sorted({(edge.digest, str(edge.relation)) for edge in parents}):
        session.merge(BaseEdgeRow(base_id=base.id or 0, parent_digest=digest, relation=relation))


# ------------------------------------------------------------------ read
_NAMED = select(BaseRow).options(defer(cast(Any, BaseRow.spec))).where(col(BaseRow.name) == bindparam("name"))
"""Built once. The spec may be large and is loaded only where it is not cached (`load_spec`)."""


def find(session: Session, name: str) -> BaseRow:
    """The row of a base. `NotFound` (BASE_UNKNOWN)."""
    base = session.exec(_NAMED, params={"name": name}).first()
    if base is None:
        raise NotFound(
            "BASE_UNKNOWN", f"there is no base '{name[:200]}'", next_step=f"run `adapter base add {name[:200]} DIR`"
        )
    return base


def load_spec(base: BaseRow) -> BaseSpec:
    """The spec of a base. It never changes, so a process loads it once."""
    key = (base.name, base.fingerprint, base.created_at)
    spec = _SPECS.get(key)
    if spec is None:
        if len(_SPECS) >= CACHED_SPECS:
            _SPECS.clear()
        spec = _SPECS[key] = BaseSpec.model_validate(base.spec)
    return spec


def compare_weights(session: Session, name: str, identity: Identity) -> Similarity:
    """How these weights are related to the base's. Nothing is stored."""
    return base_identity.compare(session, find(session, names.base_name(name)), identity)


def show(session: Session, actor: Actor, name: str) -> BaseView:
    """One base with its relatives and thresholds, which `list_bases` leaves out."""
    return _view(session, actor, find(session, names.base_name(name)))


def list_bases(session: Session, actor: Actor) -> BaseList:
    """All bases by name."""
    rows = session.exec(select(BaseRow).order_by(col(BaseRow.name))).all()
    return BaseList(items=_views(session, actor, rows))


def _view(session: Session, actor: Actor, base: BaseRow) -> BaseView:
    view = _views(session, actor, [base])[0]
    row = session.get(BaseThresholdsRow, base.id)
    thresholds = dict(row.thresholds) if row is not None else {}
    return view.model_copy(update={"relatives": base_identity.find_relatives(session, base), "thresholds": thresholds})


def _with_exact(spec: BaseSpec, exact: Digest | None) -> BaseSpec:
    return spec.model_copy(update={"fingerprints": spec.fingerprints.model_copy(update={"exact": exact})})


def _views(session: Session, actor: Actor, rows: Sequence[BaseRow]) -> list[BaseView]:
    counting = (
        select(VersionRow.base_id, func.count(func.distinct(VersionRow.adapter_id)))
        .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
        .where(col(VersionRow.base_id).in_([r.id for r in rows]), versions.visible(actor))
        .group_by(col(VersionRow.base_id))
    )
    adapters = dict(session.exec(counting).all())
    exacts = base_identity.exact_fingerprints(session, rows)
    parents = _parents_by_name(session, actor, rows)
    return [
        BaseView(
            name=r.name,
            fingerprint=Digest(r.fingerprint),
            spec=_with_exact(load_spec(r), exacts.get(r.id or 0)),
            source=r.source,
            parents=parents[r.name],
            adapters=adapters.get(r.id or 0, 0),
            created_at=r.created_at,
            created_by=r.created_by,
        )
        for r in rows
    ]


def _parents_by_name(session: Session, actor: Actor, bases: Sequence[BaseRow]) -> dict[str, list[Edge]]:
    """Base's name → what was fused into it. A parent that the actor may not see keeps its digest, without a name."""
    parents = {base.name: [Edge.model_validate(edge) for edge in base.parents or ()] for base in bases}
    visible = _visible_digests(session, actor, {edge.digest for edges in parents.values() for edge in edges})
    return {
        name: [edge if edge.digest in visible else edge.model_copy(update={"name": ""}) for edge in edges]
        for name, edges in parents.items()
    }


def _require_visible(session: Session, actor: Actor, digests: Set[str]) -> None:
    """`NotFound` (VERSION_UNKNOWN) for a parent that does not exist or that the actor may not see."""
    for digest in sorted(digests - _visible_digests(session, actor, digests)):
        raise NotFound("VERSION_UNKNOWN", f"parents: there is no version {digest}, or you may not see it")


def _visible_digests(session: Session, actor: Actor, digests: Set[str]) -> set[str]:
    if not digests:
        return set()
    statement = select(VersionRow.digest).join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    return set(session.exec(statement.where(col(VersionRow.digest).in_(digests), versions.visible(actor))).all())
