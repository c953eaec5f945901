"""Reads of adapters and versions: resolve a selector, find a row, list, and build the views that the API returns.

What the actor may not see raises the same NotFound as what does not exist. `resolve` is one statement; the kinds of
absence are distinguished only after it found nothing. A page starts after the key of the last one (`next_cursor`).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

from msgspec import structs
from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    and_,
    bindparam,
    case,
    func,
    inspect,
    literal_column,
    null,
    or_,
    true,
    tuple_,
    type_coerce,
    union_all,
)
from sqlalchemy import select as plain_select
from sqlalchemy.orm import aliased, defer
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import Session, col, select

from registry.api import PREFIX
from registry.api.catalog import FileLink, Resolved, VersionPage, VersionView
from registry.digest import Digest, DigestPrefix
from registry.errors import NotFound, RegistryError, Unavailable, invalid_cursor
from registry.evaluation.verdicts import Verdict
from registry.names import NEWEST, AdapterName, Alias, Ref, Selector, is_alias
from registry.roles import Scope
from registry.server.access import epoch
from registry.server.actors import Actor, public_namespaces, unknown_adapter
from registry.server.catalog import availability, metadata, page_size, verdicts
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import (
    AdapterRow,
    AliasRow,
    BaseRow,
    BlobRow,
    VerdictRow,
    VersionFileRow,
    VersionMetadataRow,
    VersionRow,
)
from registry.server.storage.references import BlobState
from registry.versions.manifest import Manifest


class Pointer(NamedTuple):
    """Everything that can change in a response of `resolve`: equal pointers of one request mean equal responses."""

    access: int
    """The access epoch."""
    version: int
    """The id of the version's row."""
    alias: int
    """The generation of the alias; 0 for a number or a digest."""
    yanked: bool
    verdict: int
    """The id of the version's newest verdict; 0 without one."""
    quarantine: int = 0
    """How often the version was put in quarantine, or a withdrawal ended."""


# ------------------------------------------------------------------ conditions
def visible(actor: Actor) -> ColumnElement[bool]:
    """The condition on `adapter` that the actor may see it."""
    return permitted(actor, Scope.PULL, col(AdapterRow.namespace), has_name)


def permitted(
    actor: Actor, scope: Scope, namespace: Any, is_about: Callable[[AdapterName], ColumnElement[bool]]
) -> ColumnElement[bool]:
    """The condition on any table that the actor has this scope for the adapter of a row.

    `namespace` is the column with the adapter's namespace; `is_about` is the condition that a row is about an adapter.
    """
    own: list[ColumnElement[bool]] = []
    namespaces: frozenset[str] | None = frozenset()
    if actor.adapters:
        adapters = map(AdapterName.parse, sorted(actor.adapters))
        own = [is_about(name) for name in adapters if actor.holds(scope, name.namespace, name.name)]
    else:
        namespaces = actor.namespaces_with(scope)
    if namespaces is None:
        return true()
    if scope == Scope.PULL:
        return or_(public_namespaces.is_one_of(namespace, namespaces, actor), *own)
    return or_(namespace.in_(sorted(namespaces)), *own)


def all_visible(actor: Actor, namespace: Any) -> ColumnElement[bool]:
    """The condition on a column that the actor may see all adapters of that namespace."""
    if actor.adapters:
        return public_namespaces.is_one_of(namespace, frozenset(), actor)
    namespaces = actor.namespaces_with(Scope.PULL)
    return true() if namespaces is None else public_namespaces.is_one_of(namespace, namespaces, actor)


def has_name(name: AdapterName) -> ColumnElement[bool]:
    """The condition on `adapter` that it has this name."""
    return and_(col(AdapterRow.namespace) == name.namespace, col(AdapterRow.name) == name.name)


# Built once, because every list and search uses it.
_MAIN = aliased(AliasRow)
_POINTER = (
    select(_MAIN.version_id)
    .where(col(_MAIN.adapter_id) == col(AdapterRow.id), col(_MAIN.alias) == NEWEST)
    .correlate(AdapterRow)
    .scalar_subquery()
)


def is_newest() -> ColumnElement[bool]:
    """The condition that joins to `adapter` the version that `main` points at: the newest that is available.

    A subquery and not a join, so that no database begins with the aliases; and the only condition: with a second one
    PostgreSQL expects a single row, and reads and sorts all adapters for a page.
    """
    return col(VersionRow.id) == _POINTER


def alias_points_at_version() -> ColumnElement[bool]:
    """The condition that joins `alias` to `adapter` and `version`."""
    return and_(col(AliasRow.adapter_id) == col(AdapterRow.id), col(AliasRow.version_id) == col(VersionRow.id))


def _selected(selector: Selector) -> ColumnElement[bool]:
    if isinstance(selector, Digest):
        return col(VersionRow.digest) == selector
    if isinstance(selector, DigestPrefix):
        return col(VersionRow.digest).startswith(selector)
    if isinstance(selector, int):
        return col(VersionRow.number) == selector
    return col(AliasRow.alias) == selector


# ------------------------------------------------------------------ one version
def resolve(session: Session, actor: Actor, name: AdapterName, selector: Selector) -> Resolved:
    """Everything that a serving system asks about one version, in one statement. Errors as in `availability`."""
    return resolve_with_pointer(session, actor, name, selector)[0]


def resolve_with_pointer(
    session: Session, actor: Actor, name: AdapterName, selector: Selector
) -> tuple[Resolved, Pointer]:
    """Resolve, and return what the response was read from, so that a cache can tell whether it still holds."""
    if not actor.sees(name):
        raise unknown_adapter(name)
    statement = (
        select(  # type: ignore[call-overload]  # eight columns: SQLModel has names for four
            VersionRow,
            VerdictRow.id,
            VerdictRow.check,
            VerdictRow.profile,
            VerdictRow.outcome,
            VerdictRow.by_owner,
            type_coerce(col(AliasRow.generation), Integer) if is_alias(selector) else null(),
            epoch.current(),
        )
        .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
        .outerjoin(VerdictRow, and_(col(VerdictRow.version_id) == col(VersionRow.id), verdicts.is_newest()))
        .where(has_name(name), _selected(selector))
        .order_by(col(VerdictRow.id))
    )
    if is_alias(selector):
        statement = statement.join(AliasRow, alias_points_at_version())
    rows = session.exec(statement).all()
    if not rows:
        raise not_found(session, name, selector)
    version = _only(name, selector, [row[0] for row in rows])
    *_, generation, access = rows[0]
    availability.require_readable(actor, name, version, selector)
    labels = {
        verdicts.label(check, profile, by_owner): outcome
        for _, _, check, profile, outcome, by_owner, *_ in rows
        if check
    }
    resolved = _resolved(name, selector, version, labels, generation)
    newest_verdict = rows[-1][1] or 0
    return resolved, Pointer(
        access, version.id or 0, generation or 0, resolved.yanked, newest_verdict, version.quarantine
    )


def _resolved(
    name: AdapterName, selector: Selector, version: VersionRow, outcomes: dict[str, Any], generation: int | None
) -> Resolved:
    """The response about a version. `outcomes`: of its newest verdicts, by label."""
    manifest = Manifest.model_validate_json(version.manifest)
    folder = f"{PREFIX}/adapters/{name}/versions/{version.digest}/files"
    return Resolved(
        name=str(name), selector=str(selector), number=version.number, digest=Digest(version.digest),
        manifest=manifest,
        files=[FileLink(**structs.asdict(f), url=f"{folder}/{f.path}") for f in manifest.files],
        verdicts=outcomes, yanked=version.yanked_at is not None, generation=generation,
    )  # fmt: skip


_LENGTH = func.length(VersionRow.manifest)
_MEASURED = (VersionRow, _LENGTH, case((bindparam("share") >= _LENGTH, col(VersionRow.manifest))))
_DEFER_LARGE = [defer(cast(Any, column)) for column in (VersionRow.facts, VersionRow.manifest)]
_LIGHT = select(*_MEASURED).options(*_DEFER_LARGE)
"""Without the facts, which are large, and without manifests over `share` characters."""
_MANIFESTS = select(VersionRow).options(_DEFER_LARGE[0]).where(any_of(col(VersionRow.id), parameter="ids"))
NAMED = select(AdapterRow.id, AdapterRow.namespace, AdapterRow.name).where(
    tuple_(col(AdapterRow.namespace), col(AdapterRow.name)).in_(bindparam("names", expanding=True))
)
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


class _Match(NamedTuple):
    """A version that a selector names, the characters of its manifest, and the generation of the alias."""

    version: VersionRow
    length: int
    generation: int | None = None


_Matches = list[_Match]
"""What a selector names: several versions only for a short digest."""


def resolve_all(
    session: Session, actor: Actor, refs: Collection[Ref], *, manifests_bytes: int
) -> dict[Ref, Resolved | RegistryError]:
    """As `resolve`, for many refs: each ref → the response or its error. Six statements however many they are.

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
        version, length, generation = match
        try:
            availability.require_readable(actor, ref.name, version, ref.selector)
            if length * times[ref] > manifests_bytes:
                raise _no_space_for(ref)
            size_bytes = len(version.manifest.encode()) * times[ref]
            if size_bytes > manifests_bytes:
                raise _no_space_for(ref)
            manifests_bytes -= size_bytes
            outcomes[ref] = _resolved(ref.name, ref.selector, version, labels[version.id or 0], generation)
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
    versions = _find_all(session, set(keys.values()), share)
    for ref, key in keys.items():
        try:
            if key not in versions:
                raise _unknown_selector(ref.name, ref.selector)
            _only(ref.name, ref.selector, [match.version for match in versions[key]])
            outcomes[ref] = versions[key][0]
        except RegistryError as e:
            outcomes[ref] = e
    return outcomes


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
    versions: dict[tuple[int, Selector], _Matches] = {}

    def read(statement: Any, **params: Any) -> Iterator[tuple[_Match, tuple[Any, ...]]]:
        for row, length, manifest, *rest in session.exec(statement, params={"share": share, **params}):
            if manifest is not None:
                set_committed_value(row, "manifest", manifest)
            yield _Match(row, length), tuple(rest)

    for match, _ in read(_BY_NUMBER, keys=numbers) if numbers else ():
        versions[match.version.adapter_id, match.version.number] = [match]
    for match, _ in read(_BY_DIGEST, keys=digests) if digests else ():
        versions[match.version.adapter_id, Digest(match.version.digest)] = [match]
    for match, (alias, generation) in read(_BY_ALIAS, keys=names_of) if names_of else ():
        versions[match.version.adapter_id, Alias(alias)] = [match._replace(generation=generation)]
    conditions = [and_(col(VersionRow.adapter_id) == adapter_id, _selected(prefix)) for adapter_id, prefix in prefixes]
    for match, _ in read(_LIGHT.where(or_(*conditions))) if conditions else ():
        for key in prefixes:
            if match.version.adapter_id == key[0] and match.version.digest.startswith(key[1]):
                versions.setdefault(key, []).append(match)
    return versions


def _only(name: AdapterName, selector: Selector, rows: Sequence[VersionRow]) -> VersionRow:
    """The one version that these rows are. `NotFound` (VERSION_UNKNOWN) for several, of which some may be deleted."""
    count = len({row.id for row in rows})
    if count > 1:
        message = f"adapter '{name}' has {count} versions whose digest begins with {selector}"
        next_step = f"write more of its digits; `adapter versions {name} --json` has them all"
        raise NotFound("VERSION_UNKNOWN", message, next_step=next_step)
    return rows[0]


def find(
    session: Session, actor: Actor, name: AdapterName, selector: Selector, *, include_withdrawn: bool = True,
    include_deleted: bool = False,
) -> VersionRow:  # fmt: skip
    """The row of one version. `NotFound`, also for a deleted one unless `include_deleted`.

    `Refused` for a withdrawn one unless `include_withdrawn`.
    """
    if not actor.sees(name):
        raise unknown_adapter(name)
    statement = select(VersionRow).join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    if is_alias(selector):
        statement = statement.join(AliasRow, alias_points_at_version())
    rows = session.exec(statement.where(has_name(name), _selected(selector))).all()
    if not rows:
        raise not_found(session, name, selector)
    row = _only(name, selector, rows)
    if not include_deleted:
        availability.require_not_deleted(name, row)
    if not include_withdrawn:
        availability.require_available(name, row)
    return row


def not_found(session: Session, name: AdapterName, selector: Selector) -> NotFound:
    """The error that says which part of a reference is missing, for an actor who may see the adapter."""
    if session.exec(select(AdapterRow.id).where(has_name(name))).first() is None:
        return unknown_adapter(name)
    return _unknown_selector(name, selector)


def _unknown_selector(name: AdapterName, selector: Selector) -> NotFound:
    code, noun = ("ALIAS_UNKNOWN", "alias") if is_alias(selector) else ("VERSION_UNKNOWN", "version")
    next_step = f"`adapter versions {name}` lists its versions and aliases; {name} alone is the newest"
    return NotFound(code, f"adapter '{name}' has no {noun} '{selector}'", next_step=next_step)


def find_adapter(session: Session, actor: Actor, name: AdapterName, *, lock: bool = False) -> AdapterRow:
    """The row of an adapter. With `lock`, changes of the same adapter wait for this transaction (PostgreSQL)."""
    statement = select(AdapterRow).where(has_name(name))
    row = session.exec(statement.with_for_update() if lock else statement).first()
    if row is None or not actor.sees(name):
        raise unknown_adapter(name)
    return row


# ------------------------------------------------------------------ views
def parse_cursor(cursor: str, *, digits: int = 9) -> int:
    """The number in a cursor, 0 for an empty one. `Invalid` (REQUEST_INVALID) for anything that no page returned."""
    if cursor and not (cursor.isascii() and cursor.isdigit() and len(cursor) <= digits):
        raise invalid_cursor()
    return int(cursor or 0)


def list_versions(
    session: Session, actor: Actor, name: AdapterName, *, include_deleted: bool = False, cursor: str = "", limit: int,
    count: bool = False,
) -> VersionPage:  # fmt: skip
    """The versions of an adapter, newest first, fewer than `limit` if they are large; `cursor` is the last number."""
    adapter = find_adapter(session, actor, name)
    statement = select(VersionRow).where(VersionRow.adapter_id == adapter.id).order_by(col(VersionRow.number).desc())
    if not include_deleted:
        statement = statement.where(col(VersionRow.deleted_at).is_(None))
    total = db.count_rows(session, statement) if count else None
    if cursor:
        statement = statement.where(col(VersionRow.number) < parse_cursor(cursor))
    ids, next_cursor = page_size.fit(session, statement, limit)  # versions may come and go before the next statement
    rows = session.exec(statement.where(any_of(col(VersionRow.id), ids))).all()
    return VersionPage(items=build_views(session, [(name, row) for row in rows]), next_cursor=next_cursor, total=total)


def show(session: Session, actor: Actor, name: AdapterName, selector: Selector) -> VersionView:
    """The view of one version."""
    return build_view(session, name, find(session, actor, name, selector))


def build_view(session: Session, name: AdapterName, row: VersionRow) -> VersionView:
    """A row as the API returns it."""
    return build_views(session, [(name, row)])[0]


_NOTHING: ColumnElement[str] = literal_column("''")


def _beside(kind: str, version_id: Any, first: Any, second: Any = _NOTHING, third: Any = _NOTHING) -> Select[Any]:
    return plain_select(literal_column(f"'{kind}'"), version_id, first, second, third)


# One statement: most of what a small statement takes is the same for all of them.
_BESIDE = union_all(
    _beside("alias", AliasRow.version_id, AliasRow.alias).where(any_of(col(AliasRow.version_id), parameter="ids")),
    _beside("base", VersionRow.id, BaseRow.name)
    .join(BaseRow, col(BaseRow.id) == col(VersionRow.base_id))
    .where(any_of(col(VersionRow.id), parameter="ids")),
    _beside("damaged", VersionFileRow.version_id, VersionFileRow.path)
    .join(BlobRow, col(BlobRow.digest) == col(VersionFileRow.digest))
    .where(any_of(col(VersionFileRow.version_id), parameter="ids"), col(BlobRow.state) == BlobState.CORRUPT),
    _beside(
        "metadata", VersionMetadataRow.version_id, VersionMetadataRow.kind, VersionMetadataRow.key,
        VersionMetadataRow.value,
    ).where(any_of(col(VersionMetadataRow.version_id), parameter="ids")),
)  # fmt: skip
"""What views show of versions that other tables have: which of these, the id of the version, and one or three texts."""


def build_views(session: Session, named_rows: Sequence[tuple[AdapterName, VersionRow]]) -> list[VersionView]:
    """Rows as the API returns them, in the same order. Two statements however many they are."""
    if not named_rows:
        return []
    rows = [row for _, row in named_rows]
    ids = [row.id or 0 for row in rows]
    newest = verdicts.newest_by_version(session, rows)
    texts: dict[tuple[str, int], list[str]] = defaultdict(list)
    metadata_rows: list[tuple[int, str, str, str]] = []
    for kind, version_id, first, second, third in session.connection().execute(_BESIDE, {"ids": ids}):
        if kind == "metadata":
            metadata_rows.append((version_id, first, second, third))
        else:
            texts[kind, version_id].append(first)
    described = metadata.fields_of(ids, metadata_rows)
    return [
        _view(
            name, row, texts["base", row.id or 0][0], Manifest.model_validate_json(row.manifest),
            newest[row.id or 0], texts["alias", row.id or 0], sorted(texts["damaged", row.id or 0]),
            **described[row.id or 0],
        )
        for name, row in named_rows
    ]  # fmt: skip


def build_new_view(
    name: AdapterName, row: VersionRow, base: str, manifest: Manifest, added: Iterable[VerdictRow], aliases: list[str]
) -> VersionView:
    """The view of a version that this transaction creates, from the rows that it has added: nothing is read again."""
    newest = [verdicts.from_row(verdict, row.digest, base) for verdict in added]
    return _view(name, row, base, manifest, newest, aliases)


def _view(
    name: AdapterName, row: VersionRow, base: str, manifest: Manifest, newest: list[Verdict], aliases: list[str],
    damaged: Sequence[str] = (), **described: Any,
) -> VersionView:  # fmt: skip
    return db.to_view(
        row,
        VersionView,
        name=str(name),
        base=base,
        base_fingerprint=manifest.base.fingerprint,
        files=manifest.files,
        parents=manifest.parents,
        verdicts=newest,
        aliases=sorted(aliases),
        damaged=damaged,
        provenance=manifest.provenance,
        annotations=manifest.annotations,
        **described,
    )
