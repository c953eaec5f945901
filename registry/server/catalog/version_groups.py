"""Reads many versions at once, on pages or by their refs, with a few statements for all.

Manifests, facts and findings are large: those of 200 versions may have hundreds of megabytes. So lengths are read
first, and rows come without facts, and without manifests over their share of a limit.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

from sqlalchemy import Integer, Select, Text, and_, bindparam, case, func, inspect, or_, tuple_, type_coerce
from sqlalchemy import cast as sql_cast
from sqlalchemy.orm import defer
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import Session, col, select

from registry.api.catalog import Resolved, VersionPage
from registry.digest import Digest, DigestPrefix
from registry.errors import RegistryError, Unavailable
from registry.evaluation.verdicts import Check
from registry.names import AdapterName, Alias, Ref, Selector, is_alias
from registry.server.actors import Actor, unknown_adapter
from registry.server.catalog import availability, verdicts, versions
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import AdapterRow, AliasRow, VerdictRow, VersionRow

PAGE_CHARACTERS = 8 * 2**20
"""Characters of manifests, facts and findings on a page of versions, which has one version at least."""
OF_FACTS = func.length(sql_cast(col(VersionRow.facts), Text))
_OF_VERSION = func.length(VersionRow.manifest) + OF_FACTS
_LENGTH_OF_FINDINGS = func.length(sql_cast(col(VerdictRow.findings), Text))
_OF_FINDINGS = (
    select(VerdictRow.version_id, func.sum(_LENGTH_OF_FINDINGS))
    .join(VersionRow, col(VersionRow.id) == col(VerdictRow.version_id))
    .where(any_of(col(VersionRow.id), parameter="ids"), verdicts.is_newest())
    .group_by(col(VerdictRow.version_id))
)
_LAST_OF_CHECK = select(VerdictRow.id, _LENGTH_OF_FINDINGS).where(
    col(VerdictRow.id).in_(
        select(func.max(VerdictRow.id))
        .where(any_of(col(VerdictRow.version_id), parameter="ids"), VerdictRow.check == bindparam("check"))
        .group_by(col(VerdictRow.version_id))
    )
)
_FINDINGS = select(VerdictRow.version_id, VerdictRow.findings).where(any_of(col(VerdictRow.id), parameter="ids"))


def fit(session: Session, ordered: Select[Any], limit: int) -> tuple[list[int], str]:
    """The ids of those of these versions that fit on a page of `limit`, and its `next_cursor`. Reads lengths only."""
    columns = (col(VersionRow.id), col(VersionRow.number), _OF_VERSION)
    measured = session.connection().execute(ordered.with_only_columns(*columns).limit(limit + 1)).all()
    ids = [version_id for version_id, _, _ in measured[:limit]]
    of_findings = dict(session.exec(_OF_FINDINGS, params={"ids": ids}).all()) if ids else {}
    count = count_fitting(length + int(of_findings.get(version_id, 0)) for version_id, _, length in measured[:limit])
    return ids[:count], str(measured[count - 1].number) if len(measured) > count else ""


def count_fitting(lengths: Iterable[int]) -> int:
    """How many of these items a page shows: one at least, if there is one."""
    totals = [*accumulate(lengths)]
    return max(sum(total <= PAGE_CHARACTERS for total in totals), min(1, len(totals)))


def read_in_batches(session: Session, measured: Sequence[Any], statement: Any) -> Iterator[tuple[int, Any]]:
    """(id, value) of rows, whose ids and lengths are `measured`: so many at a time as a page shows."""
    while measured:
        batch = measured[: count_fitting(row[1] for row in measured)]
        yield from session.connection().execute(statement, {"ids": [row[0] for row in batch]})
        measured = measured[len(batch) :]


def last_findings(session: Session, version_ids: Collection[int], check: Check) -> Iterator[tuple[int, Any]]:
    """Of each version the stored findings of its last verdict of a check."""
    measured = session.exec(_LAST_OF_CHECK, params={"ids": sorted(version_ids), "check": check}).all()
    return read_in_batches(session, measured, _FINDINGS)


def list_versions(
    session: Session, actor: Actor, name: AdapterName, *, include_deleted: bool = False, cursor: str = "", limit: int,
    count: bool = False,
) -> VersionPage:  # fmt: skip
    """The versions of an adapter, newest first, fewer than `limit` if they are large; `cursor` is the last number."""
    adapter = versions.find_adapter(session, actor, name, include_deleted=include_deleted)
    statement = select(VersionRow).where(VersionRow.adapter_id == adapter.id).order_by(col(VersionRow.number).desc())
    if not include_deleted:
        statement = statement.where(col(VersionRow.deleted_at).is_(None))
    total = db.count_rows(session, statement) if count else None
    if cursor:
        statement = statement.where(col(VersionRow.number) < versions.parse_cursor(cursor))
    ids, next_cursor = fit(session, statement, limit)  # versions may come and go before the next statement
    rows = session.exec(statement.where(any_of(col(VersionRow.id), ids))).all()
    return VersionPage(
        items=versions.build_views(session, [(name, row) for row in rows]), next_cursor=next_cursor, total=total
    )


# ------------------------------------------------------------------ by refs
_LENGTH = func.length(VersionRow.manifest)
_MEASURED = (VersionRow, _LENGTH, case((bindparam("share") >= _LENGTH, col(VersionRow.manifest))))
_DEFER_LARGE = [defer(cast(Any, column)) for column in (VersionRow.facts, VersionRow.manifest)]
_LIGHT = select(*_MEASURED).options(*_DEFER_LARGE)
"""Without the facts, which are large, and without manifests over `share` characters."""
_MANIFESTS = select(VersionRow).options(_DEFER_LARGE[0]).where(any_of(col(VersionRow.id), parameter="ids"))
NAMED = select(AdapterRow.id, AdapterRow.namespace, AdapterRow.name).where(
    tuple_(col(AdapterRow.namespace), col(AdapterRow.name)).in_(bindparam("names", expanding=True))
)
EXPLAINED_LIMIT = 20
"""Missing adapters of a request of which it is said whether they were deleted or renamed: each takes statements."""
_NAMED_ORDERED = NAMED.order_by(col(AdapterRow.namespace), col(AdapterRow.name))
NAMED_LOCKED = _NAMED_ORDERED.with_for_update()
_NAMED_SHARED = _NAMED_ORDERED.with_for_update(read=True, key_share=True)
_BY_NUMBER = _LIGHT.where(
    tuple_(col(VersionRow.adapter_id), col(VersionRow.number)).in_(bindparam("keys", expanding=True))
)
_BY_DIGEST = _LIGHT.where(
    tuple_(col(VersionRow.adapter_id), col(VersionRow.digest)).in_(bindparam("keys", expanding=True))
)
_BY_ALIAS = (
    _LIGHT.add_columns(col(AliasRow.alias), type_coerce(col(AliasRow.generation), Integer))
    .join(AliasRow, col(AliasRow.version_id) == col(VersionRow.id))
    .where(tuple_(col(AliasRow.adapter_id), col(AliasRow.alias)).in_(bindparam("keys", expanding=True)))
)


@dataclass(frozen=True, slots=True)
class _Match:
    """A version that a selector names, the characters of its manifest, and the generation of the alias."""

    version: VersionRow
    length: int
    generation: int | None = None


_Matches = list[_Match]
"""What a selector names: several versions only for a short digest."""


def resolve_all(
    session: Session, actor: Actor, refs: Collection[Ref], *, manifests_bytes: int
) -> dict[Ref, Resolved | RegistryError]:
    """Resolve many refs: each ref → the response or its error. Six statements however many they are.

    `Unavailable` (TRY_LATER) for those whose manifests would be beyond `manifests_bytes`, each counted as often as its
    ref is in `refs`.
    """
    times = Counter(refs)
    outcomes: dict[Ref, Resolved | RegistryError] = {}
    matches = _match_all(session, actor, times, manifests_bytes // max(1, len(times)))
    existing = {ref: match for ref, match in matches.items() if isinstance(match, _Match)}
    _load_fitting(session, [(match, times[ref]) for ref, match in existing.items()], manifests_bytes)
    labels = verdicts.newest_outcomes(session, {match.version.id or 0 for match in existing.values()})
    for ref, match in matches.items():
        if isinstance(match, RegistryError):
            outcomes[ref] = match
            continue
        version = match.version
        try:
            availability.require_readable(actor, ref.name, version, ref.selector)
            if match.length * times[ref] > manifests_bytes:
                raise _no_space_for(ref)
            size_bytes = len(version.manifest.encode()) * times[ref]
            if size_bytes > manifests_bytes:
                raise _no_space_for(ref)
            manifests_bytes -= size_bytes
            outcomes[ref] = versions.build_resolved(
                ref.name, ref.selector, version, labels[version.id or 0], match.generation
            )
        except RegistryError as e:
            outcomes[ref] = e
    return outcomes


def _load_fitting(session: Session, matches: Iterable[tuple[_Match, int]], characters: int) -> None:
    """Load the larger manifests, as far as all, each so many times, have so many characters."""
    ids = []
    for match, times in matches:
        if match.length * times <= characters:
            characters -= match.length * times
            if "manifest" in inspect(match.version).unloaded:
                ids.append(match.version.id)
    if ids:
        session.exec(_MANIFESTS.execution_options(populate_existing=True), params={"ids": ids}).all()


def find_all(
    session: Session, actor: Actor, refs: Iterable[Ref], *, lock_names: bool = False
) -> dict[Ref, VersionRow | RegistryError]:
    """The row of each ref, or the error that `find` raises; withdrawn and deleted ones, too.

    Facts and manifests are read where they are used: those of a group may have a hundred megabytes.

    `lock_names`: no adapter is renamed, moved or deleted until the transaction ends (PostgreSQL).
    """
    matches = _match_all(session, actor, dict.fromkeys(refs), lock_names=lock_names)
    return {ref: match if isinstance(match, RegistryError) else match.version for ref, match in matches.items()}


def _match_all(
    session: Session, actor: Actor, refs: Collection[Ref], share: int = 0, *, lock_names: bool = False
) -> dict[Ref, _Match | RegistryError]:
    """What each ref names, with manifests of up to `share` characters, or why there is nothing."""
    outcomes: dict[Ref, _Match | RegistryError] = {ref: unknown_adapter(ref.name) for ref in refs}
    statement = _NAMED_SHARED if lock_names else NAMED
    adapters = find_adapter_ids(session, actor, {ref.name for ref in refs}, statement)
    keys = {ref: (adapters[ref.name], ref.selector) for ref in refs if ref.name in adapters}
    matches_of = _find_all(session, set(keys.values()), share)
    for ref, key in keys.items():
        try:
            if key not in matches_of:
                raise versions.unknown_selector(ref.name, ref.selector)
            versions.only_version(ref.name, ref.selector, [match.version for match in matches_of[key]])
            outcomes[ref] = matches_of[key][0]
        except RegistryError as e:
            outcomes[ref] = e
    missing = [ref for ref in refs if keys.get(ref) not in matches_of and actor.sees(ref.name)]
    explained = {ref: versions.not_found(session, actor, ref.name, ref.selector) for ref in missing[:EXPLAINED_LIMIT]}
    return outcomes | explained


def explain_missing(session: Session, actor: Actor, names: Collection[AdapterName]) -> dict[AdapterName, RegistryError]:
    """Whether adapters that are not there were deleted or renamed, of the first few."""
    missing = [name for name in sorted(names) if actor.sees(name)]
    return {name: versions.missing_adapter(session, actor, name) for name in missing[:EXPLAINED_LIMIT]}


def find_adapter_ids(
    session: Session, actor: Actor, names: Collection[AdapterName], statement: Any = NAMED
) -> dict[AdapterName, int]:
    """Name → the id of its row, of those adapters that the actor may see. By `NAMED_LOCKED` as in `find_adapter`."""
    visible = sorted((name.namespace, name.name) for name in names if actor.sees(name))
    rows = session.exec(statement, params={"names": visible}).all() if visible else []
    return {AdapterName(namespace, name): adapter_id or 0 for adapter_id, namespace, name in rows}


def _no_space_for(ref: Ref) -> Unavailable:
    return Unavailable(
        "TRY_LATER",
        f"'{ref}' does not fit into this response: its manifest and those before it are too large",
        next_step="request it again, with fewer others",
        retry_after_seconds=1,
    )


def _find_all(
    session: Session, keys: Collection[tuple[int, Selector]], share: int
) -> dict[tuple[int, Selector], _Matches]:
    """(adapter, selector) → what it names, of those that exist."""
    numbers = [key for key in keys if isinstance(key[1], int)]
    digests = [key for key in keys if isinstance(key[1], Digest)]
    prefixes = [(adapter_id, picked) for adapter_id, picked in keys if isinstance(picked, DigestPrefix)]
    names_of = [key for key in keys if is_alias(key[1])]
    matches: dict[tuple[int, Selector], _Matches] = {}

    def read(statement: Any, **params: Any) -> Iterator[tuple[_Match, tuple[Any, ...]]]:
        for row, length, manifest, *rest in session.exec(statement, params={"share": share, **params}):
            if manifest is not None:
                set_committed_value(row, "manifest", manifest)
            yield _Match(row, length), tuple(rest)

    for match, _ in read(_BY_NUMBER, keys=numbers) if numbers else ():
        matches[match.version.adapter_id, match.version.number] = [match]
    for match, _ in read(_BY_DIGEST, keys=digests) if digests else ():
        matches[match.version.adapter_id, Digest(match.version.digest)] = [match]
    for match, (alias, generation) in read(_BY_ALIAS, keys=names_of) if names_of else ():
        matches[match.version.adapter_id, Alias(alias)] = [_Match(match.version, match.length, generation)]
    conditions = [
        and_(col(VersionRow.adapter_id) == adapter_id, versions.is_selected(prefix)) for adapter_id, prefix in prefixes
    ]
    for match, _ in read(_LIGHT.where(or_(*conditions))) if conditions else ():
        for key in prefixes:
            if match.version.adapter_id == key[0] and match.version.digest.startswith(key[1]):
                matches.setdefault(key, []).append(match)
    return matches
