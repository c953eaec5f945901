"""Reads of adapters and versions: resolve a selector, find a row, list, and build the views that the API returns.

What the actor may not see raises the same NotFound as what does not exist. `resolve` is one statement; the kinds of
absence are distinguished only after it found nothing. A page starts after the key of the last one (`next_cursor`).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    and_,
    literal_column,
    null,
    or_,
    true,
    type_coerce,
    union_all,
)
from sqlalchemy import select as plain_select
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from registry.api import PREFIX
from registry.api.catalog import FileLink, Resolved, VersionView
from registry.digest import Digest, DigestPrefix
from registry.errors import RENAMED_TO, NotFound, invalid_cursor
from registry.evaluation.verdicts import Verdict
from registry.names import NEWEST, AdapterName, Selector, is_alias, served_name
from registry.roles import Scope
from registry.server import audit
from registry.server.access import epoch
from registry.server.actors import Actor, public_namespaces, unknown_adapter
from registry.server.catalog import availability, metadata, verdicts
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
from registry.server.database.models.owner_rules import SIGNATURE, AttestationRow
from registry.server.storage.states import BlobState
from registry.versions.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Pointer:
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


def is_selected(selector: Selector) -> ColumnElement[bool]:
    """The condition on `version`, joined to `alias` for an alias, that a selector names it."""
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
        .where(has_name(name), is_selected(selector))
        .order_by(col(VerdictRow.id))
    )
    if is_alias(selector):
        statement = statement.join(AliasRow, alias_points_at_version())
    rows = session.exec(statement).all()
    if not rows:
        raise not_found(session, actor, name, selector)
    version = only_version(name, selector, [row[0] for row in rows])
    *_, generation, access = rows[0]
    availability.require_readable(actor, name, version, selector)
    labels = {
        verdicts.label(check, profile, by_owner): outcome
        for _, _, check, profile, outcome, by_owner, *_ in rows
        if check
    }
    resolved = build_resolved(name, selector, version, labels, generation)
    newest_verdict = rows[-1][1] or 0
    return resolved, Pointer(
        access, version.id or 0, generation or 0, resolved.yanked, newest_verdict, version.quarantine
    )


def build_resolved(
    name: AdapterName, selector: Selector, version: VersionRow, outcomes: dict[str, Any], generation: int | None
) -> Resolved:
    """The response about a version. `outcomes`: of its newest verdicts, by label."""
    manifest = Manifest.model_validate_json(version.manifest)
    folder = f"{PREFIX}/adapters/{name}/versions/{version.digest}/files"
    return Resolved(
        name=str(name), selector=str(selector), number=version.number, digest=Digest(version.digest),
        manifest=manifest,
        files=[FileLink(**f.model_dump(), url=f"{folder}/{f.path}") for f in manifest.files],
        verdicts=outcomes, yanked=version.yanked_at is not None, generation=generation,
        served_name=served_name(name, version.number),
    )  # fmt: skip


def only_version(name: AdapterName, selector: Selector, rows: Sequence[VersionRow]) -> VersionRow:
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
    rows = session.exec(statement.where(has_name(name), is_selected(selector))).all()
    if not rows:
        raise not_found(session, actor, name, selector)
    row = only_version(name, selector, rows)
    if not include_deleted:
        availability.require_not_deleted(name, row)
    if not include_withdrawn:
        availability.require_available(name, row)
    return row


def not_found(session: Session, actor: Actor, name: AdapterName, selector: Selector) -> NotFound:
    """The error that says which part of a reference is missing, for an actor who may see the adapter."""
    exists = session.exec(select(AdapterRow.id, _POINTER).where(has_name(name))).first()
    if exists is None or exists[1] is None:
        return missing_adapter(session, actor, name)
    return unknown_selector(name, selector)


def missing_adapter(session: Session, actor: Actor, name: AdapterName) -> NotFound:
    """The error for an adapter that is not there, for an actor who may see it: a deleted or renamed one says so."""
    statement = select(VersionRow).join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    last = session.exec(
        statement.where(has_name(name), col(VersionRow.deleted_at).is_not(None))
        .order_by(col(VersionRow.deleted_at).desc()).limit(1)
    ).first()  # fmt: skip
    if last is None:
        return _renamed_error(session, actor, name) or unknown_adapter(name)
    next_step = "" if last.purged_at is not None else f"an owner restores it: `adapter delete {name} --undo`"
    message = f"adapter '{name}' {availability.deletion_text(last)}"
    return NotFound("ADAPTER_DELETED", message, next_step=next_step, parameters={"adapter": str(name)})


def _renamed_error(session: Session, actor: Actor, name: AdapterName) -> NotFound | None:
    """The error for a former name; None if the actor may not see what has it now."""
    to = audit.read_new_name(session, name)
    if to is None or not actor.sees(to) or session.exec(select(AdapterRow.id).where(has_name(to))).first() is None:
        return None
    message, parameters = f"adapter '{name}' was renamed to '{to}'", {RENAMED_TO: str(to)}
    return NotFound("ADAPTER_UNKNOWN", message, next_step=f"use its new name, {to}", parameters=parameters)


def unknown_selector(name: AdapterName, selector: Selector) -> NotFound:
    """The error for a selector that names nothing."""
    code, noun = ("ALIAS_UNKNOWN", "alias") if is_alias(selector) else ("VERSION_UNKNOWN", "version")
    next_step = f"`adapter versions {name}` lists its versions and aliases; {name} alone is the newest"
    return NotFound(
        code, f"adapter '{name}' has no {noun} '{selector}'", next_step=next_step,
        parameters={"adapter": str(name), noun: str(selector)},
    )  # fmt: skip


def find_adapter(
    session: Session, actor: Actor, name: AdapterName, *, lock: bool = False, include_deleted: bool = False
) -> AdapterRow:
    """The row of an adapter. With `lock`, changes of the same adapter wait for this transaction (PostgreSQL).

    A deleted adapter is one without `main`. `NotFound` (ADAPTER_UNKNOWN, ADAPTER_DELETED).
    """
    if not actor.sees(name):
        raise unknown_adapter(name)
    statement = select(AdapterRow, _POINTER).where(has_name(name))
    row = session.exec(statement.with_for_update(of=AdapterRow) if lock else statement).first()
    if row is None or (row[1] is None and not include_deleted):
        raise missing_adapter(session, actor, name)
    return row[0]


# ------------------------------------------------------------------ views
def parse_cursor(cursor: str, *, digits: int = 9) -> int:
    """The number in a cursor, 0 for an empty one. `Invalid` (REQUEST_INVALID) for anything that no page returned."""
    if cursor and not (cursor.isascii() and cursor.isdigit() and len(cursor) <= digits):
        raise invalid_cursor()
    return int(cursor or 0)


def show(session: Session, actor: Actor, name: AdapterName, selector: Selector) -> VersionView:
    """The view of one version."""
    return build_view(session, name, find(session, actor, name, selector))


def build_view(session: Session, name: AdapterName, row: VersionRow) -> VersionView:
    """A row as the API returns it."""
    return build_views(session, [(name, row)])[0]


_NOTHING: ColumnElement[str] = literal_column("''")


def _related(kind: str, version_id: Any, first: Any, second: Any = _NOTHING, third: Any = _NOTHING) -> Select[Any]:
    return plain_select(literal_column(f"'{kind}'"), version_id, first, second, third)


# One statement: most of what a small statement takes is the same for all of them.
_RELATED = union_all(
    _related("alias", AliasRow.version_id, AliasRow.alias).where(any_of(col(AliasRow.version_id), parameter="ids")),
    _related("base", VersionRow.id, BaseRow.name)
    .join(BaseRow, col(BaseRow.id) == col(VersionRow.base_id))
    .where(any_of(col(VersionRow.id), parameter="ids")),
    _related("damaged", VersionFileRow.version_id, VersionFileRow.path)
    .join(BlobRow, col(BlobRow.digest) == col(VersionFileRow.digest))
    .where(any_of(col(VersionFileRow.version_id), parameter="ids"), col(BlobRow.state) == BlobState.CORRUPT),
    _related("signature", AttestationRow.version_id, AttestationRow.identity)
    .where(any_of(col(AttestationRow.version_id), parameter="ids"), col(AttestationRow.kind) == SIGNATURE),
    _related(
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
    for kind, version_id, first, second, third in session.connection().execute(_RELATED, {"ids": ids}):
        if kind == "metadata":
            metadata_rows.append((version_id, first, second, third))
        else:
            texts[kind, version_id].append(first)
    described = metadata.fields_of(ids, metadata_rows)
    return [
        _view(
            name, row, texts["base", row.id or 0][0], Manifest.model_validate_json(row.manifest),
            newest[row.id or 0], texts["alias", row.id or 0], sorted(texts["damaged", row.id or 0]),
            signed_by=sorted(set(texts["signature", row.id or 0])), **described[row.id or 0],
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
        served_name=served_name(name, row.number),
        **described,
    )
