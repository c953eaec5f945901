"""The desired state of a base: the versions that an alias points at, for every node that serves that base.

Withdrawn versions, and those that the actor may not see, are left out. The number of statements is constant. The cursor
(`state_cursor`, one statement) changes whenever this state does. Engine verdicts are evaluated now from stored facts.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import func, tuple_
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from registry import names
from registry.api import PREFIX
from registry.api.catalog import FileLink
from registry.api.serving import DesiredAdapter, DesiredState
from registry.bases import BaseSpec
from registry.digest import Digest
from registry.engines import EngineProfile, rulebook
from registry.engines import settings as engine_settings
from registry.errors import TooLarge
from registry.evaluation.verdicts import Check
from registry.names import AdapterName
from registry.server.actors import Actor
from registry.server.catalog import availability, base_rows, verdicts, version_groups, versions
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import AdapterRow, AliasRow, BaseRow, VerdictRow, VersionFileRow, VersionRow
from registry.server.evaluation import engine_compat

_Row = tuple[AdapterRow, VersionRow, int]
WHOLE_LIMIT = 2000
"""How many adapters one response lists without `limit`."""
_FILE_CHARACTERS = 400  # of a file beside its path, which its link repeats
_OF_FILES = select(func.coalesce(func.sum(func.length(VersionFileRow.path) * 2 + _FILE_CHARACTERS), 0))
_OF_ADAPTER = (
    _OF_FILES.where(col(VersionFileRow.version_id) == VersionRow.id).scalar_subquery() + version_groups.OF_FACTS
)


@dataclass(frozen=True, slots=True)
class Page:
    """Which adapters to list: up to `limit` of those that follow `after`, a name; without `limit` all of them."""

    after: str = ""
    limit: int | None = None


def load(
    session: Session, actor: Actor, base_name: str, alias: str, profile: EngineProfile | None, page: Page,
    *, cursor: str,
) -> DesiredState:  # fmt: skip
    """A page of the desired state, adapters ordered by name. `NotFound` (BASE_UNKNOWN), `TooLarge`.

    `cursor`: what was read before it with `state_cursor`, of the first page.
    """
    base = base_rows.find(session, names.base_name(base_name))
    alias = names.alias(alias)
    order = (col(AdapterRow.namespace), col(AdapterRow.name))
    statement = _pointed_at(base, alias, actor).order_by(*order)
    if page.after:
        last = AdapterName.parse(page.after)
        statement = statement.where(tuple_(*order) > tuple_(last.namespace, last.name))
    ids, next_after = _fit(session, statement, page.limit or WHOLE_LIMIT)
    if next_after and page.limit is None:
        limits = f"{WHOLE_LIMIT} adapters or {version_groups.PAGE_CHARACTERS} characters of files and facts"
        message = f"the desired state of '{base.name}' by the alias '{alias}' has more than {limits}"
        raise TooLarge("SIZE_INVALID", message, next_step="read it page by page, with `limit` and `after`")
    rows = session.exec(statement.where(any_of(col(AdapterRow.id), ids)))  # whichever versions they serve by now
    adapters: list[_Row] = [(adapter, version, at.generation) for adapter, version, at in rows]
    files = _files(session, adapters)
    outcomes = verdicts.newest_outcomes(session, [version.id or 0 for _, version, _ in adapters])
    served = _served_names(adapters)
    spec = base_rows.load_spec(base)
    entries = [
        _entry(row, served[row[1].id or 0], files[row[1].id or 0], outcomes[row[1].id or 0], profile, spec)
        for row in adapters
    ]
    facts = {
        f"{adapter.namespace}/{adapter.name}": version.facts.get("engine") or {} for adapter, version, _ in adapters
    }
    return DesiredState(
        base=base.name, base_fingerprint=base.fingerprint, alias=alias, cursor=cursor, adapters=entries,
        ranks={str(rank): count for rank, count in sorted(Counter(e.rank for e in entries if e.rank).items())},
        settings=engine_settings.settings_for(str(profile), facts, spec) if profile else None,
        next_after=next_after,
    )  # fmt: skip


def _fit(session: Session, ordered: Any, limit: int) -> tuple[list[int], str]:
    """The ids of the adapters on a page of up to `limit`, and its `next_after`. Reads lengths only."""
    columns = (AdapterRow.id, AdapterRow.namespace, AdapterRow.name, _OF_ADAPTER)
    measured = session.connection().execute(ordered.with_only_columns(*columns).limit(limit + 1)).all()
    count = version_groups.count_fitting(length for *_, length in measured[:limit])
    last = f"{measured[count - 1][1]}/{measured[count - 1][2]}" if len(measured) > count else ""
    return [adapter_id for adapter_id, *_ in measured[:count]], last


def state_cursor(session: Session, actor: Actor, base: BaseRow, alias: str, profile: EngineProfile | None) -> str:
    """A digest over each entry's name, version and newest verdict, and the engine rules."""
    newest = select(func.max(VerdictRow.id)).where(col(VerdictRow.version_id) == col(VersionRow.id)).scalar_subquery()
    statement = _pointed_at(base, alias, actor).order_by(col(AdapterRow.id))
    rows = session.connection().execute(
        statement.with_only_columns(
            AdapterRow.id, AdapterRow.namespace, AdapterRow.name, VersionRow.id, AliasRow.generation, newest
        )
    )
    rules = str(rulebook.digest(profile.engine)) if profile else ""
    return Digest.of(repr([base.id, alias, str(profile or ""), rules, *map(tuple, rows)]).encode()).hex


def _pointed_at(base: BaseRow, alias: str, actor: Actor) -> Any:
    return (
        select(AdapterRow, VersionRow, AliasRow)
        .join(AliasRow, col(AliasRow.adapter_id) == col(AdapterRow.id))
        .join(VersionRow, col(VersionRow.id) == col(AliasRow.version_id))
        .options(defer(cast(Any, VersionRow.manifest)))  # up to a megabyte each
        .where(
            col(VersionRow.base_id) == base.id,
            col(AliasRow.alias) == alias,
            ~availability.WITHDRAWN,
            versions.visible(actor),
        )
    )


def _files(session: Session, adapters: Iterable[_Row]) -> dict[int, list[VersionFileRow]]:
    by_version: dict[int, list[VersionFileRow]] = defaultdict(list)
    ids = [version.id for _, version, _ in adapters]
    statement = select(VersionFileRow).where(any_of(col(VersionFileRow.version_id), ids))
    statement = statement.order_by(col(VersionFileRow.path))
    for row in session.exec(statement):
        by_version[row.version_id].append(row)
    return by_version


def _served_names(adapters: Sequence[_Row]) -> dict[int, str]:
    """Version id → its name in engines, with a hash at the end if two adapters would have the same."""
    plain = [names.served_name(AdapterName(adapter.namespace, adapter.name), v.number) for adapter, v, _ in adapters]
    distinct = names.distinguish_served_names(plain, ((f"{a.namespace}/{a.name}", v.digest) for a, v, _ in adapters))
    return {version.id or 0: name for (_, version, _), name in zip(adapters, distinct, strict=True)}


def _entry(
    item: _Row, served: str, files: list[VersionFileRow], outcomes: dict[str, str], profile: EngineProfile | None,
    spec: BaseSpec,
) -> DesiredAdapter:  # fmt: skip
    adapter, version, generation = item
    name = f"{adapter.namespace}/{adapter.name}"
    folder = f"{PREFIX}/adapters/{name}/versions/{version.digest}/files"
    stored = outcomes.get(Check.COMPAT, ""), outcomes.get(Check.WEIGHTS, "")
    loaded = engine_compat.evaluate_profile(version.facts, profile, version.digest, spec, *stored) if profile else None
    return db.to_view(
        version,
        DesiredAdapter,
        name=name,
        served_name=served,
        generation=generation,
        files=[
            FileLink(path=file.path, media_type=file.media_type, digest=Digest(file.digest),
                     size_bytes=file.size_bytes, url=f"{folder}/{file.path}") for file in files
        ],
        verdicts=outcomes,
        engine_outcome=loaded.outcome if loaded else None,
        findings=[f for f in loaded.findings if f.severity != "info"] if loaded else [],
    )  # fmt: skip
