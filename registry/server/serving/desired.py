"""The desired state of a base: the versions that an alias points at, for every node that serves that base.

Withdrawn versions, and those that the actor may not see, are left out. The number of statements is constant. The cursor
(`state_cursor`, one statement) changes whenever this state does. Engine verdicts are evaluated now from stored facts.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, col, select

from registry import names
from registry.api import PREFIX
from registry.api.catalog import FileLink
from registry.api.serving import DesiredAdapter, DesiredState
from registry.bases import BaseSpec
from registry.digest import Digest
from registry.engines import EngineProfile, rulebook
from registry.engines import settings as engine_settings
from registry.evaluation.verdicts import Verdict
from registry.names import AdapterName
from registry.server.actors import Actor
from registry.server.catalog import availability, base_rows, verdicts, versions
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import AdapterRow, AliasRow, BaseRow, VerdictRow, VersionFileRow, VersionRow
from registry.server.evaluation import engine_compat

_Row = tuple[AdapterRow, VersionRow, int]


def load(session: Session, actor: Actor, base_name: str, alias: str, profile: EngineProfile | None) -> DesiredState:
    """The desired state, adapters ordered by name. `NotFound` (BASE_UNKNOWN)."""
    base = base_rows.find(session, names.base_name(base_name))
    alias = names.alias(alias)
    cursor = state_cursor(session, actor, base, alias, profile)
    statement = _pointed_at(base, alias, actor).order_by(col(AdapterRow.namespace), col(AdapterRow.name))
    adapters: list[_Row] = [(adapter, version, at.generation) for adapter, version, at in session.exec(statement)]
    files = _files(session, adapters)
    verdicts_of = verdicts.newest_by_version(session, [version for _, version, _ in adapters])
    served = _served_names(adapters)
    spec = base_rows.load_spec(base)
    entries = [
        _entry(row, served[row[1].id or 0], files[row[1].id or 0], verdicts_of[row[1].id or 0], profile, spec)
        for row in adapters
    ]
    facts = {
        f"{adapter.namespace}/{adapter.name}": version.facts.get("engine") or {} for adapter, version, _ in adapters
    }
    return DesiredState(
        base=base.name, base_fingerprint=base.fingerprint, alias=alias, cursor=cursor, adapters=entries,
        ranks={str(rank): count for rank, count in sorted(Counter(e.rank for e in entries if e.rank).items())},
        settings=engine_settings.settings_for(str(profile), facts, spec) if profile else None,
    )  # fmt: skip


def state_cursor(session: Session, actor: Actor, base: BaseRow, alias: str, profile: EngineProfile | None) -> str:
    """A digest over each entry's version and newest verdict, and the engine rules."""
    newest = select(func.max(VerdictRow.id)).where(col(VerdictRow.version_id) == col(VersionRow.id)).scalar_subquery()
    statement = _pointed_at(base, alias, actor).order_by(col(AdapterRow.id))
    rows = session.connection().execute(
        statement.with_only_columns(AdapterRow.id, VersionRow.id, AliasRow.generation, newest)
    )
    rules = str(rulebook.digest(profile.engine)) if profile else ""
    return Digest.of(repr([base.id, alias, str(profile or ""), rules, *map(tuple, rows)]).encode()).hex


def _pointed_at(base: BaseRow, alias: str, actor: Actor) -> Any:
    return (
        select(AdapterRow, VersionRow, AliasRow)
        .join(AliasRow, col(AliasRow.adapter_id) == col(AdapterRow.id))
        .join(VersionRow, col(VersionRow.id) == col(AliasRow.version_id))
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
    """Version id → its name in engines, with a digest at the end if two adapters would have the same."""
    plain = {v.id or 0: names.served_name(AdapterName(a.namespace, a.name), v.number) for a, v, _ in adapters}
    often = Counter(plain.values())
    return {
        version.id or 0: name if often[name] == 1 else f"{name}-{Digest(version.digest).hex[:8]}"
        for (_, version, _), name in zip(adapters, plain.values(), strict=True)
    }


def _entry(
    item: _Row, served: str, files: list[VersionFileRow], verdicts_of: list[Verdict], profile: EngineProfile | None,
    spec: BaseSpec,
) -> DesiredAdapter:  # fmt: skip
    adapter, version, generation = item
    name = f"{adapter.namespace}/{adapter.name}"
    folder = f"{PREFIX}/adapters/{name}/versions/{version.digest}/files"
    loaded = (
        engine_compat.evaluate_profile(
            version.facts, profile, version.digest, spec, *engine_compat.newest_outcomes(verdicts_of)
        )
        if profile
        else None
    )
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
        verdicts={verdicts.label(v.check, v.profile, v.by_owner): v.outcome for v in verdicts_of},
        engine_outcome=loaded.outcome if loaded else None,
        findings=[f for f in loaded.findings if f.severity != "info"] if loaded else [],
    )  # fmt: skip
