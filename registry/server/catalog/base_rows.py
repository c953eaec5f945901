"""Finds the rows of bases by name or alias, and reads their specs, of which a process keeps some."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from registry.bases import BaseSpec
from registry.bases.library import LibraryModules
from registry.digest import Digest
from registry.errors import NotFound
from registry.server.database.expressions import any_of
from registry.server.database.models import BaseRow
from registry.versions.manifest import BaseRef

CACHED_SPECS = 64
_SPECS: dict[tuple[str, str, datetime, str], BaseSpec] = {}
_LIGHT = select(BaseRow).options(*(defer(cast(Any, column)) for column in (BaseRow.spec, BaseRow.library_modules)))
_NAMED = _LIGHT.where(any_of(col(BaseRow.name), parameter="names"))
"""Built once: every push executes it. The spec may be large and is loaded only if it is not cached (`load_spec`)."""


def find(session: Session, name: str) -> BaseRow:
    """The row of a base, by its name or one of its aliases. `NotFound` (BASE_UNKNOWN)."""
    base = find_named(session, name)
    if base is None:
        raise unknown_base(name)
    return base


def unknown_base(name: str) -> NotFound:
    """The error for a base that does not exist."""
    next_step = f"run `adapter base add {name[:200]} DIR`"
    return NotFound("BASE_UNKNOWN", f"there is no base '{name[:200]}'", next_step=next_step)


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
    rows = session.exec(select(BaseRow.name, BaseRow.aliases).order_by(col(BaseRow.name)))
    return {name: aliases or [] for name, aliases in rows}


def reference(base: BaseRow) -> BaseRef:
    """How manifests name a base."""
    return BaseRef(name=base.name, fingerprint=Digest(base.fingerprint))


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


def with_exact_fingerprint(spec: BaseSpec, exact: Digest | None) -> BaseSpec:
    """Return the spec with another fingerprint of its weights."""
    return spec.model_copy(update={"fingerprints": spec.fingerprints.model_copy(update={"exact": exact})})
