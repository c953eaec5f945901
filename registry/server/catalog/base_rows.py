"""Finds the rows of bases by name or alias, and reads their specs, one at a time. A process keeps some of them.

A base that is not registered has a row that is only a name, from the first version that needs it. Versions refer to
that row, and nothing else finds it, so no tenant learns which names others have used.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, delete, exists, update
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from registry.bases import UNREGISTERED, BaseSpec
from registry.bases.library import LibraryModules
from registry.digest import Digest
from registry.errors import NotFound, TooLarge, Unavailable
from registry.server.database import db, dialects
from registry.server.database.expressions import any_of
from registry.server.database.models import AdapterRow, BaseRow, VerdictRow, VersionRow
from registry.versions.manifest import BaseRef

CACHED_SPECS = 64
CACHED_MODULES = 250_000
"""Of all cached specs."""
_SPECS: dict[tuple[str, str, datetime, str], BaseSpec] = {}
_READING = threading.Lock()
"""Who reads a spec, which takes a second and 100 MB if the base has 100,000 modules."""
READ_SECONDS = 30
"""How long a thread waits for others that read specs: one of them may need a connection that this one has."""
UNREGISTERED_LIMIT = 100
"""Bases that are not registered, of the versions of one namespace."""
REGISTERED = col(BaseRow.fingerprint) != UNREGISTERED
DEFER_SPECS = [defer(cast(Any, column)) for column in (BaseRow.spec, BaseRow.library_modules)]
_LIGHT = select(BaseRow).options(*DEFER_SPECS).where(REGISTERED)
_NAMED = _LIGHT.where(any_of(col(BaseRow.name), parameter="names"))
"""Built once: every push executes it. The spec may be large and is loaded only if it is not cached (`load_spec`)."""


def find(session: Session, name: str) -> BaseRow:
    """The row of a base, by its name or one of its aliases. `NotFound` (BASE_UNKNOWN)."""
    base = find_named(session, name)
    if base is None:
        raise unknown_base(name)
    return base


def get(session: Session, base_id: int) -> BaseRow:
    """The row of a base without its spec, which `load_spec` reads."""
    return session.get_one(BaseRow, base_id, options=DEFER_SPECS)


def unknown_base(name: str) -> NotFound:
    """The error for a base that does not exist."""
    next_step = f"`adapter base list` shows the registered ones; `adapter base add {name[:200]} DIR` adds this one"
    return NotFound(
        "BASE_UNKNOWN", f"there is no base '{name[:200]}'", next_step=next_step, parameters={"base": name[:200]}
    )


def find_named(session: Session, name: str) -> BaseRow | None:
    """The row of a base, by its name or one of its aliases; None if there is none."""
    return find_all(session, [name]).get(name)


def find_all(session: Session, names: Iterable[str]) -> dict[str, BaseRow]:
    """Name or alias → the row of the base, of those that exist. Two statements at the most."""
    requested = sorted(set(names))
    bases = {row.name: row for row in session.exec(_NAMED, params={"names": requested})}
    if len(bases) < len(requested):
        rows = session.exec(_LIGHT.where(col(BaseRow.aliases).is_not(None)).order_by(col(BaseRow.name))).all()
        for name in requested:
            row = bases.get(name) or next((row for row in rows if name in (row.aliases or ())), None)
            if row is not None:
                bases[name] = row
    return bases


def read_aliases(session: Session) -> dict[str, Sequence[str]]:
    """Name → aliases of every base, in the order of names."""
    rows = session.exec(select(BaseRow.name, BaseRow.aliases).where(REGISTERED).order_by(col(BaseRow.name)))
    return {name: aliases or [] for name, aliases in rows}


def reference(base: BaseRow) -> BaseRef:
    """How manifests name a base."""
    return BaseRef(name=base.name, fingerprint=Digest(base.fingerprint))


def load_spec(base: BaseRow) -> BaseSpec:
    """The spec of a base, with its modules as a library builds them. A process reads it once for each library.

    `Unavailable` (TRY_LATER) if others read theirs for too long.
    """
    if base.fingerprint == UNREGISTERED:
        return BaseSpec.unregistered(base.name)
    key = (base.name, base.fingerprint, base.created_at, base.library or "")
    spec = _SPECS.get(key)
    if spec is not None:
        return spec
    if not _READING.acquire(timeout=READ_SECONDS):
        raise Unavailable("TRY_LATER", "base: others are being read", retry_after_seconds=2)
    try:
        spec = _SPECS.get(key)
        if spec is None:
            spec = parse_spec(base.spec, base.library_modules)
            cached = sum(len(other.modules) for other in [*_SPECS.values()])
            if len(_SPECS) >= CACHED_SPECS or cached + len(spec.modules) > CACHED_MODULES:
                _SPECS.clear()
            _SPECS[key] = spec
        return spec
    finally:
        _READING.release()


def parse_spec(spec: Mapping[str, Any], library_modules: Mapping[str, Any] | None) -> BaseSpec:
    """The spec of these columns of a base, which may be `without_modules`."""
    parsed = BaseSpec.model_validate({"modules": {}, **spec})
    return LibraryModules.model_validate(library_modules).apply(parsed) if library_modules else parsed


def without_modules(session: Session, column: ColumnElement[Any]) -> ColumnElement[Any]:
    """A column of JSON without its modules, which may have megabytes: no process of this server parses them."""
    return dialects.of(session).without_key(column, "modules")


def with_exact_fingerprint(spec: BaseSpec, exact: Digest | None) -> BaseSpec:
    """Return the spec with another fingerprint of its weights."""
    return spec.model_copy(update={"fingerprints": spec.fingerprints.model_copy(update={"exact": exact})})


def lock_names(session: Session) -> None:
    """Wait until this transaction is the only one that adds, deletes or renames bases; read their names afterwards.

    No index makes names and aliases unique together, and limits and rights depend on which bases exist.
    """
    db.lock_names(session, "names of bases")


def build_unregistered(name: str) -> BaseRow:
    """The row of a base of which only the name is known; it is not in the database."""
    values = {"spec": BaseSpec.unregistered(name).model_dump(mode="json"), "created_at": db.now(), "created_by": ""}
    return db.new_row(BaseRow, name=name, fingerprint=UNREGISTERED, **values)


def store_unregistered(session: Session, namespace: str, name: str) -> BaseRow:
    """The stored row of such a base. `TooLarge` (SIZE_INVALID) for too many in a namespace.

    `Unavailable` (TRY_LATER) if it is registered by now: whatever was evaluated without it is outdated.
    """
    lock_names(session)
    if find_named(session, name) is not None:
        raise Unavailable("TRY_LATER", f"the base '{name}' was registered in the meantime: commit again")
    in_use = set(
        session.exec(
            select(BaseRow.name)
            .join(VersionRow, col(VersionRow.base_id) == col(BaseRow.id))
            .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
            .where(~REGISTERED, AdapterRow.namespace == namespace)
            .distinct()
        )
    )
    if name not in in_use and len(in_use) >= UNREGISTERED_LIMIT:
        message = f"'{namespace}' has {UNREGISTERED_LIMIT} bases that are not registered, which is the limit"
        raise TooLarge("SIZE_INVALID", message, next_step=f"register one: `adapter base add {name} DIR`")
    db.insert_new(session, BaseRow, build_unregistered(name).model_dump(exclude={"id"}))
    return session.exec(select(BaseRow).where(BaseRow.name == name)).one()


def complete(session: Session, values: Mapping[str, Any]) -> bool:
    """Register a base of which only the name is stored; its versions keep their row. False if there is none."""
    statement = update(BaseRow).where(col(BaseRow.name) == values["name"], ~REGISTERED).values(**values)
    return session.connection().execute(statement).rowcount > 0


def adopt(session: Session, base: BaseRow, aliases: Iterable[str]) -> None:
    """Give a base the versions on bases that are not registered and have one of its aliases as their name."""
    base_ids = select(BaseRow.id).where(col(BaseRow.name).in_(list(aliases)), ~REGISTERED)
    for table in (VersionRow, VerdictRow):
        statement = update(table).where(col(table.base_id).in_(base_ids)).values(base_id=base.id)
        session.connection().execute(statement)
    delete_unused(session)


def delete_unused(session: Session) -> None:
    """Delete the rows of bases that are not registered and have no version any more; locked by `lock_names`."""
    references = [exists().where(col(table.base_id) == col(BaseRow.id)) for table in (VersionRow, VerdictRow)]
    session.connection().execute(delete(BaseRow).where(~REGISTERED, *(~condition for condition in references)))
