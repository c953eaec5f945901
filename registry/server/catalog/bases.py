"""Bases: the models that adapters are checked against, which weights each has, and how they are related.

- A base never changes: another spec, or other weights, under its name are refused. Only norms may be added to its
  identity by reading the same weights again, and its modules as a newer library builds them replace the older ones.
- All namespaces share the bases: every token that may pull sees them, but counts only the adapters that it may see.
- Administrators and workers add any base. Others add `ORG/NAME` where they may push in the namespace ORG, and their
  `source` is not stored: a worker opens it.
- Similarities are computed when an identity is stored. If two servers store identities at the same moment they miss
  that pair; it is computed on request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from datetime import datetime
from typing import Any, cast

from sqlalchemy import bindparam, func, text
from sqlalchemy import delete as delete_rows
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from registry import names
from registry.api.catalog import BaseAdd, BasePage, BaseView
from registry.bases import BaseMatch, BaseSpec, Similarity
from registry.bases import identity as identities
from registry.bases.identity import Identity
from registry.bases.library import LibraryModules
from registry.digest import Digest
from registry.errors import Conflict, Denied, NotFound, TooLarge
from registry.evaluation.thresholds import Thresholds
from registry.events import EventType
from registry.jobs import State
from registry.manifest import Edge
from registry.roles import Scope
from registry.server import audit
from registry.server.access import reserved_names
from registry.server.actors import Actor
from registry.server.catalog import versions
from registry.server.database import db
from registry.server.database.any_of import any_of
from registry.server.database.models import (
    AdapterRow,
    BaseEdgeRow,
    BaseIdentityRow,
    BaseRow,
    BaseSimilarityRow,
    BaseThresholdsRow,
    JobRow,
    VersionRow,
)

CACHED_SPECS = 64
BASES_LIMIT = 10_000
BASES_PER_ORG_LIMIT = 100
"""Bases of one organization, for those who add them by a right in its namespace."""
NAMES_LOCK = 0x61646170_62617365  # "adapbase"
_SPECS: dict[tuple[str, str, datetime, str], BaseSpec] = {}


# ------------------------------------------------------------------ write
def add(session: Session, actor: Actor, request: BaseAdd) -> tuple[BaseView, bool]:
    """Add a base; also says whether it is new. `Conflict` (BASE_EXISTS) for another spec or other weights; `Denied`.

    A source is stored for administrators and workers of all namespaces only: workers open it.
    """
    name = names.base_name(request.spec.name)
    lock_names(session)
    existing = _find_named(session, name)
    if existing is None:
        require_may_add(session, actor, name)
    elif existing.name != name:
        next_step = f"use '{existing.name}', or remove the alias first"
        raise Conflict("BASE_EXISTS", f"'{name}' is an alias of the base '{existing.name}'", next_step=next_step)
    claimed = request.identity.exact if request.identity is not None else request.spec.fingerprints.exact
    spec = _with_exact(request.spec, None).model_copy(update={"library": "", "library_problem": ""})
    source = request.source if _is_trusted(actor) else ""
    values = {
        "name": str(name), "fingerprint": str(spec.fingerprint), "spec": spec.model_dump(mode="json"),
        "source": source, "parents": [edge.model_dump(mode="json") for edge in request.parents] or None,
        "created_at": db.now(), "created_by": actor.identity,
    }  # fmt: skip
    _require_visible(session, actor, {edge.digest for edge in request.parents})
    created = db.insert_new(session, BaseRow, values)
    base = find(session, name)
    if created:
        add_parents(session, base, request.parents)
        audit.append(session, actor, EventType.BASE_ADD, str(name), {"fingerprint": base.fingerprint})
    elif BaseSpec.model_validate(base.spec) != spec:
        raise Conflict(
            "BASE_EXISTS",
            f"base '{name}' exists with fingerprint {base.fingerprint} and another spec than this one "
            f"(fingerprint {spec.fingerprint})",
            next_step="add it under another name: a base never changes under its adapters",
        )
    elif source and not base.source:
        base.source, base.recorded_at = source, None  # its record is written again
        audit.append(session, actor, EventType.BASE_ADD, str(name), {"source": source})
    if request.identity is not None:
        store_identity(session, actor, base, request.identity, new=created)
    elif claimed is not None:
        require_same_weights(session, base, claimed)
    return _view(session, actor, base), created


def lock_names(session: Session) -> None:
    """Wait until this transaction is the only one that adds, deletes or renames bases; read their names afterwards.

    No index makes names and aliases unique together, and limits and rights depend on which bases exist.
    """
    if not db.is_sqlite(session):  # it has one writer at a time
        session.connection().execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": NAMES_LOCK})


def require_may_add(session: Session, actor: Actor, name: str) -> None:
    """`Denied` unless the actor may add a base of this name; `TooLarge` (SIZE_INVALID) over a limit."""
    org = _org_of(name)
    count = select(func.count(col(BaseRow.id)))
    if not _is_trusted(actor):
        if not org or not actor.holds(Scope.PUSH, org):
            raise Denied(
                "DENIED",
                f"token {actor.name!r} may not add the base '{name}'",
                next_step="ask an administrator, or name it NAMESPACE/NAME with a namespace where the token may push",
            )
        reserved_names.check_base_available(session, name)
        of_org = count.where(func.lower(BaseRow.name).startswith(f"{org}/", autoescape=True))
        if session.exec(of_org).one() >= BASES_PER_ORG_LIMIT:
            raise TooLarge("SIZE_INVALID", f"'{org}' has {BASES_PER_ORG_LIMIT} bases, which is the limit")
    if session.exec(count).one() >= BASES_LIMIT:
        raise TooLarge("SIZE_INVALID", f"this registry has {BASES_LIMIT} bases, which is the limit")


def _org_of(name: str) -> str:
    """The namespace that a base's name begins with, empty for a name without one."""
    return name.partition("/")[0].lower() if "/" in name else ""


def _is_trusted(actor: Actor) -> bool:
    """Whether the actor is an administrator or a worker of the whole registry."""
    return actor.may_everywhere(Scope.ADMIN) or actor.may_everywhere(Scope.WORK)


def delete(session: Session, actor: Actor, name: str) -> str:
    """Delete a base that no version and no job refers to; return its name.

    `Conflict` (BASE_IN_USE), `Denied`, `NotFound`.
    """
    lock_names(session)
    base = find(session, names.base_name(name))
    name = base.name
    if not _org_of(name) or not actor.holds(Scope.ADMIN, _org_of(name)):
        actor.require_everywhere(Scope.ADMIN)
    session.refresh(base, with_for_update=True)
    waiting = select(JobRow.id).where(JobRow.base == name, col(JobRow.state).in_([State.QUEUED, State.RUNNING]))
    used = select(VersionRow.id).where(VersionRow.base_id == base.id)
    for what, statement in (("versions", used), ("waiting jobs", waiting)):
        if session.exec(statement.limit(1)).first() is not None:
            message = f"base '{name}' has {what}"
            raise Conflict("BASE_IN_USE", message, next_step="delete them first, or keep the base")
    for table in (BaseIdentityRow, BaseSimilarityRow, BaseEdgeRow, BaseThresholdsRow):
        session.connection().execute(delete_rows(table).filter_by(base_id=base.id))
    session.connection().execute(delete_rows(BaseSimilarityRow).filter_by(other_id=base.id))
    session.delete(base)
    for former_name in (name, *(base.aliases or ())):
        reserved_names.add_base_tombstone(session, former_name)
    audit.append(session, actor, EventType.BASE_DELETE, name, {"fingerprint": base.fingerprint})
    session.flush()
    return name


def set_aliases(session: Session, actor: Actor, name: str, aliases: Sequence[str]) -> BaseView:
    """Replace the other names of a base. For administrators. `Conflict` (BASE_EXISTS) for a name that is taken.

    A name that is left out ends: pushers of its organization cannot give it to another base.
    """
    actor.require_everywhere(Scope.ADMIN)
    lock_names(session)
    base = find(session, names.base_name(name))
    session.refresh(base, with_for_update=True)
    others = sorted({str(names.base_name(alias)) for alias in aliases} - {base.name})
    for alias in others:
        other = _find_named(session, alias)
        if other is not None and other.id != base.id:
            raise Conflict("BASE_EXISTS", f"aliases: '{alias}' names the base '{other.name}' already")
    for freed in sorted(set(base.aliases or ()) - set(others)):
        reserved_names.add_base_tombstone(session, freed)
    base.aliases, base.recorded_at = others or None, None  # its record is written again
    session.add(base)
    audit.append(session, actor, EventType.BASE_ALIASES, base.name, {"aliases": others})
    session.flush()
    return _view(session, actor, base)


def identify(session: Session, actor: Actor, name: str, identity: Identity) -> BaseView:
    """Store which weights the base has. `Conflict` (BASE_EXISTS) if it is known to have others."""
    base = find(session, names.base_name(name))
    store_identity(session, actor, base, identity)
    return _view(session, actor, base)


def set_modules(session: Session, actor: Actor, name: str, built: LibraryModules) -> BaseView:
    """Store a base's modules as a library builds them, unless a newer version's are stored. `Denied`."""
    actor.require_everywhere(Scope.WORK)  # all namespaces share the bases
    base = find(session, names.base_name(name))
    session.refresh(base, with_for_update=True)
    if built.replaces(base.library or ""):
        base.library, base.library_modules = built.library, built.model_dump(mode="json")
        session.add(base)
        audit.append(session, actor, EventType.BASE_MODULES, base.name, {"library": built.library})
        session.flush()
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
    """Write the rows of what was fused into a base, for lineage. Repeating it changes nothing."""
    for digest, relation in sorted({(edge.digest, str(edge.relation)) for edge in parents}):
        session.merge(BaseEdgeRow(base_id=base.id or 0, parent_digest=digest, relation=relation))


# ------------------------------------------------------------------ read
_LIGHT = select(BaseRow).options(*(defer(cast(Any, column)) for column in (BaseRow.spec, BaseRow.library_modules)))
_NAMED = _LIGHT.where(col(BaseRow.name) == bindparam("name"))
"""Built once: every push executes it. The spec may be large and is loaded only if it is not cached (`load_spec`)."""


def find(session: Session, name: str) -> BaseRow:
    """The row of a base, by its name or one of its aliases. `NotFound` (BASE_UNKNOWN)."""
    base = _find_named(session, name)
    if base is None:
        raise NotFound(
            "BASE_UNKNOWN", f"there is no base '{name[:200]}'", next_step=f"run `adapter base add {name[:200]} DIR`"
        )
    return base


def _find_named(session: Session, name: str) -> BaseRow | None:
    base = session.exec(_NAMED, params={"name": name}).first()
    if base is not None:
        return base
    rows = session.exec(_LIGHT.where(col(BaseRow.aliases).is_not(None)).order_by(col(BaseRow.name))).all()
    return next((row for row in rows if name in (row.aliases or ())), None)


def load_spec(base: BaseRow) -> BaseSpec:
    """The spec of a base, with its modules as a library builds them. A process reads it once for each library."""
    key = (base.name, base.fingerprint, base.created_at, base.library or "")
    spec = _SPECS.get(key)
    if spec is None:
        if len(_SPECS) >= CACHED_SPECS:
            _SPECS.clear()
        spec = BaseSpec.model_validate(base.spec)
        if base.library_modules:
            spec = LibraryModules.model_validate(base.library_modules).apply(spec)
        _SPECS[key] = spec
    return spec


def show(session: Session, actor: Actor, name: str) -> BaseView:
    """One base with its relatives and thresholds, which `list_bases` leaves out."""
    return _view(session, actor, find(session, names.base_name(name)))


def list_bases(session: Session, actor: Actor, *, cursor: str = "", limit: int) -> BasePage:
    """Bases by name, from the one that follows `cursor`."""
    statement = select(BaseRow).where(col(BaseRow.name) > cursor).order_by(col(BaseRow.name))
    rows = session.exec(statement.limit(limit + 1)).all()
    items = _views(session, actor, rows[:limit])
    return BasePage(items=items, next_cursor=items[-1].name if len(rows) > limit else "")


def _view(session: Session, actor: Actor, base: BaseRow) -> BaseView:
    view = _views(session, actor, [base])[0]
    row = session.get(BaseThresholdsRow, base.id)
    thresholds = dict(row.thresholds) if row is not None else {}
    relatives = [relative for relative in find_relatives(session, base) if relative.other not in view.aliases]
    return view.model_copy(update={"relatives": relatives, "thresholds": thresholds})


def _with_exact(spec: BaseSpec, exact: Digest | None) -> BaseSpec:
    return spec.model_copy(update={"fingerprints": spec.fingerprints.model_copy(update={"exact": exact})})


def _views(session: Session, actor: Actor, rows: Sequence[BaseRow]) -> list[BaseView]:
    counting = (
        select(VersionRow.base_id, func.count(func.distinct(VersionRow.adapter_id)))
        .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
        .where(any_of(col(VersionRow.base_id), [row.id for row in rows]), versions.visible(actor))
        .group_by(col(VersionRow.base_id))
    )
    adapters = dict(session.exec(counting).all())
    exacts = _exact_fingerprints(session, rows)
    parents = _parents_by_name(session, actor, rows)
    return [
        db.to_answer(
            row,
            BaseView,
            spec=_with_exact(load_spec(row), exacts.get(row.id or 0)),
            parents=parents[row.name],
            adapters=adapters.get(row.id or 0, 0),
            aliases=row.aliases or [],
        )
        for row in rows
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


# ------------------------------------------------------------------ weights
def store_identity(session: Session, actor: Actor, base: BaseRow, identity: Identity, *, new: bool = False) -> bool:
    """Store which weights a base has; returns False if it was known. `Conflict` (BASE_EXISTS) for others; `Denied`.

    `new`: this request adds the base.
    """
    base_id = base.id or 0
    # All namespaces share the bases, and what is stored here stays.
    may_identify = new or actor.may_everywhere(Scope.WORK)
    if not may_identify and session.get(BaseIdentityRow, base_id) is None:
        raise Denied(
            "DENIED",
            f"to identify the weights of '{base.name}' later needs the scope 'work' in all namespaces",
            next_step="ask an administrator to run `adapter base identify`",
        )
    # The lock makes a concurrent backup see the change: without it, setting an empty `recorded_at` to empty again
    # would write nothing.
    session.refresh(base, with_for_update={"key_share": True})
    values = {
        "base_id": base_id, "exact": str(identity.exact), "identity": identity.model_dump_json(),
        "made_at": db.now(), "made_by": actor.identity,
    }  # fmt: skip
    if not db.insert_new(session, BaseIdentityRow, values):
        require_same_weights(session, base, identity.exact, identity)
        if may_identify:
            _add_norms(session, base, identity)
        return False
    for row in session.exec(select(BaseIdentityRow).where(col(BaseIdentityRow.base_id) != base_id)):
        similarity = identities.compare(identity, _parse_identity(row)).model_dump(mode="json", exclude={"other"})
        for own_id, other_id in ((base_id, row.base_id), (row.base_id, base_id)):
            values = {"base_id": own_id, "other_id": other_id, "similarity": similarity}
            db.insert_new(session, BaseSimilarityRow, values)
    base.recorded_at = None  # its record is written again
    session.add(base)
    audit.append(session, actor, EventType.BASE_IDENTIFY, base.name, {"exact": str(identity.exact)})
    return True


def _add_norms(session: Session, base: BaseRow, identity: Identity) -> None:
    """Add norms to an identity that was stored without them."""
    row = session.get_one(BaseIdentityRow, base.id)
    if identity.has_norms and not _parse_identity(row).has_norms:
        row.identity = identity.model_dump_json()
        base.recorded_at = None
        session.add_all((row, base))


def require_same_weights(session: Session, base: BaseRow, exact: Digest, identity: Identity | None = None) -> None:
    """`Conflict` (BASE_EXISTS) if the base is known to have other weights."""
    row = session.get(BaseIdentityRow, base.id)
    if row is None or row.exact == exact:
        return
    similarity = identities.compare(_parse_identity(row), identity) if identity is not None else None
    relation = f"; the given base {similarity.message}" if similarity is not None else ""
    raise Conflict(
        "BASE_EXISTS",
        f"base '{base.name}' exists with other weights: its exact fingerprint is {row.exact}, not {exact}{relation}",
        next_step="add these weights under another name: a base never changes under its adapters",
    )


def compare_weights(session: Session, name: str, identity: Identity) -> Similarity:
    """How these weights are related to the base's; `unknown` while the base has no identity. Nothing is stored."""
    row = session.get(BaseIdentityRow, find(session, names.base_name(name)).id)
    if row is None:
        return Similarity(match=BaseMatch.UNKNOWN)
    return identities.compare(_parse_identity(row), identity)


def _exact_fingerprints(session: Session, rows: Iterable[BaseRow]) -> dict[int, Digest]:
    """Base id → exact fingerprint, for those bases that have one."""
    ids = [base.id for base in rows]
    statement = select(BaseIdentityRow.base_id, BaseIdentityRow.exact).where(any_of(col(BaseIdentityRow.base_id), ids))
    return {base_id: Digest(exact) for base_id, exact in session.exec(statement)}


# Built once: every push executes it. The identity itself is large and rarely needed.
_SELECT_IDENTITY = (
    select(BaseIdentityRow)
    .options(defer(cast(Any, BaseIdentityRow.identity)))
    .where(col(BaseIdentityRow.base_id) == bindparam("id"))
)


def find_relatives(session: Session, base: BaseRow) -> list[Similarity]:
    """How other bases are related to this one, by name: its aliases, and those with an identity if this one has one."""
    aliases = [Similarity(other=alias, match=BaseMatch.EXACT) for alias in base.aliases or ()]
    own = session.exec(_SELECT_IDENTITY, params={"id": base.id}).first()
    if own is None:
        return aliases
    statement = (
        select(BaseRow.name, BaseIdentityRow.base_id, BaseSimilarityRow.similarity)
        .join(BaseIdentityRow, col(BaseIdentityRow.base_id) == col(BaseRow.id))
        .outerjoin(
            BaseSimilarityRow,
            (col(BaseSimilarityRow.other_id) == col(BaseRow.id)) & (col(BaseSimilarityRow.base_id) == base.id),
        )
        .where(col(BaseRow.id) != base.id)
        .order_by(col(BaseRow.name))
    )
    relatives = []
    for name, other_id, stored in session.exec(statement).all():
        if stored:
            similarity = Similarity.model_validate(stored)
        else:
            other = session.get_one(BaseIdentityRow, other_id)
            similarity = identities.compare(_parse_identity(own), _parse_identity(other))
        relatives.append(similarity.model_copy(update={"other": name}))
    return [*aliases, *relatives]


def _parse_identity(row: BaseIdentityRow) -> Identity:
    return Identity.model_validate_json(row.identity)
