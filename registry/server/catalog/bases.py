"""Bases: add, show, list. What adapters are judged against.

Invariants
- A base's name is given once: adding the same spec again changes nothing; another spec, or other weights, under the
  name is refused.
- The exact fingerprint is that of the base's identity (identities.py), never one that somebody only claims.
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
from registry.api import BaseList, BaseView
from registry.api.bases import BaseAdd
from registry.bases import BaseSpec
from registry.bases.identity import Identity
from registry.bases.similarity import Similarity
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

SPECS_KEPT = 64
_SPECS: dict[tuple[str, str, datetime], BaseSpec] = {}


def add(session: Session, actor: Actor, request: BaseAdd) -> tuple[BaseView, bool]:
    """The base of this name, and whether this call made it. `Conflict` (BASE_EXISTS) for another spec."""
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
    _demand_seen(session, actor, [edge.digest for edge in request.parents])
    created = db.insert_new(session, BaseRow, values)
    found = find(session, name)
    if created:
        add_parents(session, found, request.parents)
        audit.append(session, actor, EventType.BASE_ADD, str(name), {"fingerprint": found.fingerprint})
    elif load_spec(found) != spec:
        raise Conflict(
            "BASE_EXISTS",
            f"base '{name}' exists with fingerprint {found.fingerprint} and other facts than these "
            f"(fingerprint {spec.fingerprint})",
            next_step="add it under another name: a base never changes under its adapters",
        )
    if request.identity is not None:
        base_identity.store_identity(session, actor, found, request.identity, new=created)
    elif claimed is not None:
        base_identity.require_same_weights(session, found, claimed)
    return _view(session, actor, found), created


def identify(session: Session, actor: Actor, name: str, given: Identity) -> BaseView:
    """Keep which weights the base has. `Conflict` (BASE_EXISTS) when it is known to have others."""
    found = find(session, names.base_name(name))
    base_identity.store_identity(session, actor, found, given)
    return _view(session, actor, found)


def set_thresholds(session: Session, actor: Actor, name: str, thresholds: dict[str, float]) -> BaseView:
    """Keep what smoke tests on this base take instead of the defaults. `Invalid` names a field that is none."""
    found = find(session, names.base_name(name))
    Thresholds.with_overrides(thresholds)
    by = actor.identity
    session.merge(BaseThresholdsRow(base_id=found.id or 0, thresholds=thresholds, set_at=db.now(), set_by=by))
    audit.append(
        session, actor, EventType.BASE_THRESHOLDS, found.name, {field: f"{v:g}" for field, v in thresholds.items()}
    )
    session.flush()
    return _view(session, actor, found)


def similarity(session: Session, name: str, given: Identity) -> Similarity:
    """How these weights are related to the base's. Nothing is kept."""
    return base_identity.compare(session, find(session, names.base_name(name)), given)


_NAMED = select(BaseRow).options(defer(cast(Any, BaseRow.spec))).where(col(BaseRow.name) == bindparam("name"))
"""Put together once; the spec, which may be large, is read for who does not know it yet (`spec_of`)."""


def find(session: Session, name: str) -> BaseRow:
    """The row of a base. `NotFound` (BASE_UNKNOWN)."""
    found = session.exec(_NAMED, params={"name": name}).first()
    if found is None:
        raise NotFound(
            "BASE_UNKNOWN", f"there is no base '{name[:200]}'", next_step=f"run `adapter base add {name[:200]} DIR`"
        )
    return found


def load_spec(found: BaseRow) -> BaseSpec:
    """What the base is made of. It never changes, so it is read once a process."""
    key = (found.name, found.fingerprint, found.created_at)
    spec = _SPECS.get(key)
    if spec is None:
        if len(_SPECS) >= SPECS_KEPT:
            _SPECS.clear()
        spec = _SPECS[key] = BaseSpec.model_validate(found.spec)
    return spec


def show(session: Session, actor: Actor, name: str) -> BaseView:
    return _view(session, actor, find(session, names.base_name(name)))


def list_bases(session: Session, actor: Actor) -> BaseList:
    """All bases by name."""
    rows = session.exec(select(BaseRow).order_by(col(BaseRow.name))).all()
    return BaseList(items=_views(session, actor, rows))


def _view(session: Session, actor: Actor, found: BaseRow) -> BaseView:
    """One base with its relatives, which a list leaves out."""
    view = _views(session, actor, [found])[0]
    own = session.get(BaseThresholdsRow, found.id)
    thresholds = dict(own.thresholds) if own is not None else {}
    return view.model_copy(update={"relatives": base_identity.find_relatives(session, found), "thresholds": thresholds})


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
    parents = _parents_of(session, actor, rows)
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


# ------------------------------------------------------------------ what was fused into a base
def add_parents(session: Session, base: BaseRow, parents: Iterable[Edge]) -> None:
    """The rows of what was fused into a base, which lineage walks. Again changes nothing."""
    for digest, relation in sorted({(edge.digest, str(edge.relation)) for edge in parents}):
        session.merge(BaseEdgeRow(base_id=base.id or 0, parent_digest=digest, relation=relation))


def _parents_of(session: Session, actor: Actor, bases: Sequence[BaseRow]) -> dict[str, list[Edge]]:
    """Base's name → what was fused into it. A parent that the actor may not see is its digest, without a name."""
    found = {base.name: [Edge.model_validate(edge) for edge in base.parents or ()] for base in bases}
    seen = _in_sight(session, actor, {edge.digest for edges in found.values() for edge in edges})
    return {
        name: [edge if edge.digest in seen else edge.model_copy(update={"name": ""}) for edge in edges]
        for name, edges in found.items()
    }


def _demand_seen(session: Session, actor: Actor, digests: Iterable[str]) -> None:
    """`NotFound` (VERSION_UNKNOWN) for a parent that is no version, or none that the actor may see."""
    wanted = set(digests)
    for digest in sorted(wanted - _in_sight(session, actor, wanted)):
        raise NotFound("VERSION_UNKNOWN", f"parents: there is no version {digest}, or you may not see it")


def _in_sight(session: Session, actor: Actor, digests: Set[str]) -> set[str]:
    if not digests:
        return set()
    statement = select(VersionRow.digest).join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    return set(session.exec(statement.where(col(VersionRow.digest).in_(digests), versions.visible(actor))).all())
