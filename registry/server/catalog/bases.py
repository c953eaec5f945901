"""Adds, changes and deletes bases: the models that adapters are checked against.

- A base never changes: another spec, or other weights, under its name are refused. Its modules as a newer library
  builds them, or as an administrator's client reads them from the same tensors, replace the older ones.
- All namespaces share the bases. Administrators and workers add any base. Others add `ORG/NAME` where they may push in
  the namespace ORG, and their `source` is not stored: a worker opens it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from typing import Any, Literal

from sqlalchemy import Text, func, literal, tuple_
from sqlalchemy import cast as sql_cast
from sqlalchemy import delete as delete_rows
from sqlmodel import Session, col, select

from registry import names
from registry.api.bases import BaseAdd, BasePage, BaseView
from registry.bases import UNREGISTERED, BaseSpec
from registry.bases.identity import Identity
from registry.bases.library import LibraryModules
from registry.errors import Conflict, Denied, Invalid, NotFound, TooLarge
from registry.evaluation.thresholds import Thresholds
from registry.events import EventType
from registry.jobs import State
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import audit
from registry.server.access import reserved_names
from registry.server.actors import Actor
from registry.server.catalog import base_rows, base_weights, version_groups, versions
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import (
    AdapterRow,
    BaseEdgeRow,
    BaseIdentityRow,
    BaseRow,
    BaseSimilarityRow,
    VersionRow,
)
from registry.server.database.models.jobs import BaseThresholdsRow, JobRow
from registry.server.database.models.namespaces import BaseUsageRow
from registry.versions.manifest import Edge

BASES_LIMIT = 10_000
BASES_PER_ORG_LIMIT = 100
"""Bases of one organization, for those who add them by a right in its namespace."""
SPECS_PER_ORG_LIMIT = 8 * 2**20
"""Characters of their specs: 8 MiB take 0.4 s to read."""
_MODULES = "modules"
_OF_SPEC = func.length(sql_cast(col(BaseRow.spec), Text))


def add(session: Session, actor: Actor, request: BaseAdd) -> tuple[BaseView, Literal["new", "read again", "same"]]:
    """Add a base; also says what changed. `Conflict` (BASE_EXISTS) for another spec or other weights; `Denied`.

    A source is stored for administrators and workers of all namespaces only: workers open it.
    """
    name = names.base_name(request.spec.name)
    base_rows.lock_names(session)
    existing = base_rows.find_named(session, name)
    if existing is None:
        require_may_add(session, actor, name, len(request.spec.model_dump_json()))
    elif existing.name != name:
        next_step = f"use '{existing.name}', or delete the alias first"
        raise Conflict("BASE_EXISTS", f"'{name}' is an alias of the base '{existing.name}'", next_step=next_step)
    if request.spec.fingerprint == UNREGISTERED:
        raise Invalid("BASE_INVALID", f"spec: the fingerprint {UNREGISTERED} means that a base is not registered")
    claimed = request.identity.exact if request.identity is not None else request.spec.fingerprints.exact
    spec = base_rows.with_exact_fingerprint(request.spec, None).model_copy(
        update={"library": "", "library_problem": ""}
    )
    source = request.source if _is_trusted(actor) else ""
    spec_document = spec.model_dump(mode="json")
    values = {
        "name": str(name), "fingerprint": str(spec.fingerprint), "spec": spec_document,
        "source": source, "parents": [edge.model_dump(mode="json") for edge in request.parents] or None,
        "created_at": db.now(), "created_by": actor.identity,
    }  # fmt: skip
    require_visible(session, actor, {edge.digest for edge in request.parents})
    created = db.insert_new(session, BaseRow, values) or base_rows.complete(session, values)
    base = base_rows.find(session, name)
    differing = [] if created else _differing_fields(BaseSpec.model_validate(base.spec), spec)
    if created:
        add_parents(session, base, request.parents)
        audit.append(session, actor, EventType.BASE_ADD, str(name), {"fingerprint": base.fingerprint})
    elif differing == [_MODULES] and actor.may_everywhere(Scope.ADMIN):
        # Other rules read the same tensors: an earlier release took some linear layers for embeddings.
        base.spec, base.created_at, base.created_by, base.recorded_at = spec_document, db.now(), actor.identity, None
        audit.append(session, actor, EventType.BASE_ADD, str(name), {_MODULES: "read again"})
    elif differing:
        by_admin = "an administrator may add it again, which reads its modules by newer rules"
        raise Conflict(
            "BASE_EXISTS",
            f"base '{name}' exists and is not this one: they differ in {', '.join(differing)}",
            next_step=by_admin if differing == [_MODULES] else "add it under another name: a base never changes",
        )
    elif source and not base.source:
        base.source, base.recorded_at = source, None  # it is written again
        audit.append(session, actor, EventType.BASE_ADD, str(name), {"source": source})
    if request.identity is not None:
        base_weights.store_identity(session, actor, base, request.identity, new=created)
    elif claimed is not None:
        base_weights.require_same_weights(session, base, claimed)
    change: Literal["new", "read again", "same"] = "new" if created else "read again" if differing else "same"
    return view(session, actor, base), change


def _differing_fields(stored: BaseSpec, new: BaseSpec) -> list[str]:
    stored, new = _without_kernels(stored), _without_kernels(new)  # the fingerprint has them, an old record does not
    pairs = [(field, getattr(stored, field), getattr(new, field)) for field in BaseSpec.model_fields]
    before, after = stored.fingerprints, new.fingerprints
    pairs += [
        (f"fingerprints.{kind}", getattr(before, kind), getattr(after, kind)) for kind in type(before).model_fields
    ]
    return [field for field, old, now in pairs if old != now and field != "fingerprints"]


def _without_kernels(spec: BaseSpec) -> BaseSpec:
    bare = {path: m.model_copy(update={"kernel": (), "groups": 0}) for path, m in spec.modules.items() if m.kernel}
    return spec.model_copy(update={"modules": spec.modules | bare})


def require_may_add(session: Session, actor: Actor, name: str, characters: int = 0) -> None:
    """`Denied` unless the actor may add a base of this name; `TooLarge` (SIZE_INVALID) over a limit.

    `characters`: of its spec, if it is known.
    """
    org = _org_of(name)
    count = select(func.count(col(BaseRow.id))).where(base_rows.REGISTERED)
    if not _is_trusted(actor):
        if not org or not actor.holds(Scope.PUSH, org):
            raise Denied(
                "DENIED",
                f"token {actor.name!r} may not add the base '{name}'",
                next_step="ask an administrator, or name it NAMESPACE/NAME with a namespace where the token may push",
            )
        reserved_names.check_base_available(session, name)
        sizes = select(_OF_SPEC).where(func.lower(BaseRow.name).startswith(f"{org}/", autoescape=True))
        of_org = session.exec(sizes.where(base_rows.REGISTERED)).all()
        if len(of_org) >= BASES_PER_ORG_LIMIT:
            raise TooLarge("SIZE_INVALID", f"'{org}' has {BASES_PER_ORG_LIMIT} bases, which is the limit")
        if sum(of_org) + characters > SPECS_PER_ORG_LIMIT:
            message = f"'{org}' would have specs of bases of over {SPECS_PER_ORG_LIMIT} characters, which is the limit"
            raise TooLarge("SIZE_INVALID", message, next_step="delete a base, or ask an administrator to add this one")
    if session.exec(count).one() >= BASES_LIMIT:
        raise TooLarge("SIZE_INVALID", f"this registry has {BASES_LIMIT} bases, which is the limit")


def _org_of(name: str) -> str:
    """The namespace that a base's name begins with, empty for a name without one."""
    return name.partition("/")[0].lower() if "/" in name else ""


def _is_trusted(actor: Actor) -> bool:
    """Whether the actor is an administrator or a worker of the whole registry."""
    return actor.may_everywhere(Scope.ADMIN) or actor.may_everywhere(Scope.WORK)


def delete(session: Session, actor: Actor, name: str) -> str:
    """Delete a base without versions and jobs; return its name. `Conflict` (BASE_IN_USE), `Denied`, `NotFound`."""
    base_rows.lock_names(session)
    base = base_rows.find(session, names.base_name(name))
    name = base.name
    if not _org_of(name) or not actor.holds(Scope.ADMIN, _org_of(name)):
        actor.require_everywhere(Scope.ADMIN)
    session.refresh(base, with_for_update=True)
    job_ids = select(JobRow.id).where(JobRow.base == name, col(JobRow.state).in_([State.QUEUED, State.RUNNING]))
    version_ids = select(VersionRow.id).where(VersionRow.base_id == base.id)
    for noun, statement in (("versions", version_ids), ("waiting jobs", job_ids)):
        if session.exec(statement.limit(1)).first() is not None:
            message = f"base '{name}' has {noun}"
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
    base_rows.lock_names(session)
    base = base_rows.find(session, names.base_name(name))
    # Pushes and restores that refer to the base go on: they have locked counters, which `adopt` locks after the base.
    session.refresh(base, with_for_update={"key_share": True})
    others = sorted({str(names.base_name(alias)) for alias in aliases} - {base.name})
    for alias in others:
        other = base_rows.find_named(session, alias)
        if other is not None and other.id != base.id:
            raise Conflict("BASE_EXISTS", f"aliases: '{alias}' names the base '{other.name}' already")
    for ended_alias in sorted(set(base.aliases or ()) - set(others)):
        reserved_names.add_base_tombstone(session, ended_alias)
    base.aliases, base.recorded_at = others or None, None  # it is written again
    session.add(base)
    base_rows.adopt(session, base, others)
    audit.append(session, actor, EventType.BASE_ALIASES, base.name, {"aliases": others})
    session.flush()
    return view(session, actor, base)


def identify(session: Session, actor: Actor, name: str, identity: Identity) -> BaseView:
    """Store which weights the base has. `Conflict` (BASE_EXISTS) if it is known to have others."""
    base = base_rows.find(session, names.base_name(name))
    base_weights.store_identity(session, actor, base, identity)
    return view(session, actor, base)


def set_modules(session: Session, actor: Actor, name: str, built: LibraryModules) -> BaseView:
    """Store a base's modules as a library builds them, unless a newer version's are stored. `Denied`."""
    actor.require_everywhere(Scope.WORK)  # all namespaces share the bases
    base = base_rows.find(session, names.base_name(name))
    session.refresh(base, with_for_update=True)
    if built.replaces(base.library or ""):
        base.library, base.library_modules = built.library, built.model_dump(mode="json")
        session.add(base)
        audit.append(session, actor, EventType.BASE_MODULES, base.name, {"library": built.library})
        session.flush()
    return view(session, actor, base)


def set_thresholds(session: Session, actor: Actor, name: str, thresholds: dict[str, float]) -> BaseView:
    """Override thresholds of the smoke tests on this base. `Invalid` names an unknown field."""
    base = base_rows.find(session, names.base_name(name))
    Thresholds.with_overrides(thresholds)
    row = BaseThresholdsRow(base_id=base.id or 0, thresholds=thresholds, set_at=db.now(), set_by=actor.identity)
    session.merge(row)
    detail = {field: f"{value:g}" for field, value in thresholds.items()}
    audit.append(session, actor, EventType.BASE_THRESHOLDS, base.name, detail)
    session.flush()
    return view(session, actor, base)


def add_parents(session: Session, base: BaseRow, parents: Iterable[Edge]) -> None:
    """Write the rows of what was fused into a base, for lineage. Repeating it changes nothing."""
    for digest, relation in sorted({(edge.digest, str(edge.relation)) for edge in parents}):
        session.merge(BaseEdgeRow(base_id=base.id or 0, parent_digest=digest, relation=relation))


# Every token that may pull sees all bases, but counts only the adapters that it may see.
def show(session: Session, actor: Actor, name: str) -> BaseView:
    """One base with its relatives and thresholds, which `list_bases` leaves out."""
    return view(session, actor, base_rows.find(session, names.base_name(name)))


def list_bases(session: Session, actor: Actor, *, cursor: str = "", limit: int, modules: bool = True) -> BasePage:
    """Bases by name, from the one that follows `cursor`; without `modules` their specs have none."""
    ordered = select(BaseRow).where(col(BaseRow.name) > cursor, base_rows.REGISTERED).order_by(col(BaseRow.name))
    columns: list[Any] = [BaseRow.spec, BaseRow.library_modules]
    if not modules:
        columns = [base_rows.without_modules(session, column) for column in columns]
    lengths = (func.coalesce(func.length(sql_cast(column, Text)), 0) for column in columns)
    page = ordered.with_only_columns(col(BaseRow.name), sum(lengths, literal(0))).limit(limit + 1)
    measured = session.connection().execute(page).all()
    names_shown = [name for name, _ in measured[: version_groups.count_fitting(size for _, size in measured[:limit])]]
    is_shown = any_of(col(BaseRow.name), names_shown)
    if modules:
        specs = [(row, base_rows.load_spec(row)) for row in session.exec(ordered.where(is_shown))]
    else:
        light = select(BaseRow, *columns).options(*base_rows.DEFER_SPECS).where(is_shown, base_rows.REGISTERED)
        read: Iterable[Any] = session.exec(light.order_by(col(BaseRow.name)))
        specs = [(row, base_rows.parse_spec(*parts)) for row, *parts in read]
    has_more = len(measured) > len(names_shown)
    return BasePage(items=_views(session, actor, specs), next_cursor=names_shown[-1] if has_more else "")


def view(session: Session, actor: Actor, base: BaseRow) -> BaseView:
    """One base as a response, with its relatives and thresholds."""
    view = _views(session, actor, [(base, base_rows.load_spec(base))])[0]
    row = session.get(BaseThresholdsRow, base.id)
    thresholds = dict(row.thresholds) if row is not None else {}
    relatives = [
        relative for relative in base_weights.find_relatives(session, base) if relative.other not in view.aliases
    ]
    return view.model_copy(update={"relatives": relatives, "thresholds": thresholds})


def _views(session: Session, actor: Actor, bases: Sequence[tuple[BaseRow, BaseSpec]]) -> list[BaseView]:
    rows = [row for row, _ in bases]
    adapters = _count_adapters(session, actor, [row.id or 0 for row in rows])
    exacts = base_weights.exact_fingerprints(session, rows)
    parents = _parents_by_name(session, actor, rows)
    return [
        db.to_view(
            row,
            BaseView,
            spec=base_rows.with_exact_fingerprint(spec, exacts.get(row.id or 0)),
            parents=parents[row.name],
            adapters=adapters[row.id or 0],
            aliases=row.aliases or [],
        )
        for row, spec in bases
    ]


def _count_adapters(session: Session, actor: Actor, base_ids: Sequence[int]) -> Counter[int]:
    """Base's id → how many adapters that the actor may see have a version on it."""
    counting = (
        select(BaseUsageRow.base_id, func.sum(BaseUsageRow.adapters))
        .where(any_of(col(BaseUsageRow.base_id), base_ids), versions.all_visible(actor, col(BaseUsageRow.namespace)))
        .group_by(col(BaseUsageRow.base_id))
    )
    counts = Counter({base_id: int(count) for base_id, count in session.exec(counting)})
    if actor.adapters:
        own = [(n.namespace, n.name) for n in map(AdapterName.parse, sorted(actor.adapters)) if actor.sees(n)]
        counting = (
            select(VersionRow.base_id, func.count(func.distinct(VersionRow.adapter_id)))
            .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
            .where(tuple_(col(AdapterRow.namespace), col(AdapterRow.name)).in_(own))
            .where(~versions.all_visible(actor, col(AdapterRow.namespace)), col(VersionRow.deleted_at).is_(None))
            .where(any_of(col(VersionRow.base_id), base_ids))
            .group_by(col(VersionRow.base_id))
        )
        counts.update(dict(session.exec(counting).all()))
    return counts


def _parents_by_name(session: Session, actor: Actor, bases: Sequence[BaseRow]) -> dict[str, list[Edge]]:
    """Base's name → what was fused into it. A parent that the actor may not see keeps its digest, without a name."""
    parents = {base.name: [Edge.model_validate(edge) for edge in base.parents or ()] for base in bases}
    visible = _visible_digests(session, actor, {edge.digest for edges in parents.values() for edge in edges})
    return {
        name: [edge if edge.digest in visible else edge.model_copy(update={"name": ""}) for edge in edges]
        for name, edges in parents.items()
    }


def require_visible(session: Session, actor: Actor, digests: Set[str]) -> None:
    """`NotFound` (VERSION_UNKNOWN) for a parent that does not exist or that the actor may not see."""
    for digest in sorted(digests - _visible_digests(session, actor, digests)):
        raise NotFound("VERSION_UNKNOWN", f"parents: there is no version {digest}, or you may not see it")


def _visible_digests(session: Session, actor: Actor, digests: Set[str]) -> set[str]:
    if not digests:
        return set()
    statement = select(VersionRow.digest).join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    return set(session.exec(statement.where(col(VersionRow.digest).in_(digests), versions.visible(actor))).all())
