"""All reads of adapters and versions: resolve a selector, find a row, list, and the views that leave the server.

Invariants
- What the actor may not see is decided here: it is NotFound with the same words as what is absent.
- `resolve` is one statement. The two kinds of absence are told apart only after it found nothing.
- Pages go by key (`next_cursor` is the last key), so the hundredth page costs what the first does.
- The newest verdict of a check and profile is the one that counts; older ones stay stored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import BindParameter, ColumnElement, Integer, and_, bindparam, func, null, or_, true, type_coerce
from sqlmodel import Session, col, select

from registry.api import PREFIX, FileLink, Resolved, VersionPage, VersionView
from registry.digest import Digest
from registry.errors import NotFound, invalid_cursor
from registry.evaluation.verdicts import Check, Verdict
from registry.manifest import Manifest
from registry.names import AdapterName, Selector
from registry.roles import Scope
from registry.server.access import epoch as access
from registry.server.actors import Actor, unknown_adapter
from registry.server.catalog import availability
from registry.server.catalog import verdicts as recorded
from registry.server.database.models import (
    AdapterRow,
    AliasRow,
    BaseRow,
    BlobRow,
    VerdictRow,
    VersionFileRow,
    VersionRow,
)
from registry.server.storage.references import BlobState


class Pointer(NamedTuple):
    """Everything that can change in an answer of `resolve`: equal pointers of one request mean equal answers."""

    access: int
    """The generation of access."""
    version: int
    """The id of the version's row."""
    alias: int
    """The generation of the alias; 0 where a number or a digest was asked for."""
    yanked: bool
    verdict: int
    """The id of the version's newest verdict; 0 without one."""
    quarantine: int = 0
    """How often the version was put in quarantine, or a withdrawal was ended."""


def visible(actor: Actor) -> ColumnElement[bool]:
    """The condition on `adapter` that leaves what the actor may see."""
    reach = actor.namespaces_with(Scope.PULL)
    if actor.adapters:
        own = [named(AdapterName.parse(adapter)) for adapter in sorted(actor.adapters)]
        return or_(col(AdapterRow.namespace).in_(sorted(actor.public)), *own)
    return true() if reach is None else col(AdapterRow.namespace).in_(sorted(reach | actor.public))


def named(name: AdapterName) -> ColumnElement[bool]:
    return and_(col(AdapterRow.namespace) == name.namespace, col(AdapterRow.name) == name.name)


def _selected(selector: Selector) -> ColumnElement[bool]:
    if isinstance(selector, Digest):
        return col(VersionRow.digest) == selector
    if isinstance(selector, int):
        return col(VersionRow.number) == selector
    return col(AliasRow.alias) == selector


def _by_alias(selector: Selector) -> bool:
    return not isinstance(selector, int | Digest)


def alias_points_at_version() -> ColumnElement[bool]:
    return and_(col(AliasRow.adapter_id) == col(AdapterRow.id), col(AliasRow.version_id) == col(VersionRow.id))


# ------------------------------------------------------------------ one version
def resolve(session: Session, actor: Actor, name: AdapterName, selector: Selector) -> Resolved:
    """Everything that a serving system asks about one version, in one statement.

    `NotFound`; `Refused` (YANKED, QUARANTINED) as `withdrawn` says.
    """
    return resolve_with_pointer(session, actor, name, selector)[0]


def resolve_with_pointer(
    session: Session, actor: Actor, name: AdapterName, selector: Selector
) -> tuple[Resolved, Pointer]:
    """The same, and what it was read from: it tells whether a remembered actor, or answer, is still right."""
    if not actor.sees(name):
        raise unknown_adapter(name)
    statement = (
        select(  # type: ignore[call-overload]  # seven columns: SQLModel has names for four
            VersionRow,
            VerdictRow.id,
            VerdictRow.check,
            VerdictRow.profile,
            VerdictRow.outcome,
            _generation(selector),
            access.current(),
        )
        .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
        .outerjoin(VerdictRow, and_(col(VerdictRow.version_id) == col(VersionRow.id), _newest_verdict()))
        .where(named(name), _selected(selector))
        .order_by(col(VerdictRow.id))
    )
    if _by_alias(selector):
        statement = statement.join(AliasRow, alias_points_at_version())
    rows = session.exec(statement).all()
    if not rows:
        raise not_found(session, name, selector)
    version: VersionRow = rows[0][0]
    availability.require_readable(actor, name, version, selector)
    manifest = Manifest.model_validate_json(version.manifest)
    folder = f"{PREFIX}/adapters/{name}/versions/{version.digest}/files"
    found = Resolved(
        name=str(name),
        selector=str(selector),
        number=version.number,
        digest=Digest(version.digest),
        manifest=manifest,
        files=[FileLink(**f.model_dump(), url=f"{folder}/{f.path}") for f in manifest.files],
        verdicts={check_label(check, profile): outcome for _, _, check, profile, outcome, *_ in rows if check},
        yanked=version.yanked_at is not None,
        generation=rows[0][5],
    )
    return found, Pointer(
        rows[0][6], version.id or 0, rows[0][5] or 0, found.yanked, rows[-1][1] or 0, version.quarantine
    )


def _generation(selector: Selector) -> ColumnElement[Any]:
    return type_coerce(col(AliasRow.generation), Integer) if _by_alias(selector) else null()


def _newest_verdict() -> ColumnElement[bool]:
    other = VerdictRow.__table__.alias("newest")  # type: ignore[attr-defined]
    newest = (
        select(func.max(other.c.id))
        .where(other.c.version_id == col(VersionRow.id))
        .group_by(other.c.check, other.c.profile)
        .correlate(VersionRow)
    )
    return col(VerdictRow.id).in_(newest)


def check_label(check: str, profile: str) -> str:
    return f"{check} {profile}" if profile else check


def find(
    session: Session, actor: Actor, name: AdapterName, selector: Selector, *, yanked_too: bool = True
) -> VersionRow:
    """The row of one version. `NotFound`, or `Refused` unless withdrawn ones are wanted too."""
    if not actor.sees(name):
        raise unknown_adapter(name)
    statement = select(VersionRow).join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    if _by_alias(selector):
        statement = statement.join(AliasRow, alias_points_at_version())
    row = session.exec(statement.where(named(name), _selected(selector))).first()
    if row is None:
        raise not_found(session, name, selector)
    if not yanked_too:
        availability.require_available(name, row)
    return row


def not_found(session: Session, name: AdapterName, selector: Selector) -> NotFound:
    """Which part of `name` and `selector` is not there. For an actor who may look."""
    if session.exec(select(AdapterRow.id).where(named(name))).first() is None:
        return unknown_adapter(name)
    if _by_alias(selector):
        return NotFound("ALIAS_UNKNOWN", f"adapter '{name}' has no alias '{selector}'")
    return NotFound("VERSION_UNKNOWN", f"adapter '{name}' has no version '{selector}'")


def find_adapter(session: Session, actor: Actor, name: AdapterName, *, lock: bool = False) -> AdapterRow:
    """The row of an adapter. With `lock`, changes of the same adapter wait for this transaction (PostgreSQL)."""
    statement = select(AdapterRow).where(named(name))
    row = session.exec(statement.with_for_update() if lock else statement).first()
    if row is None or not actor.sees(name):
        raise unknown_adapter(name)
    return row


# ------------------------------------------------------------------ views
def list_versions(session: Session, actor: Actor, name: AdapterName, *, cursor: str = "", limit: int) -> VersionPage:
    """The versions of an adapter, newest first; `cursor` is the number of the last one seen."""
    adapter = find_adapter(session, actor, name)
    statement = select(VersionRow).where(col(VersionRow.adapter_id) == adapter.id)
    if cursor:
        if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 10):
            raise invalid_cursor()
        statement = statement.where(col(VersionRow.number) < int(cursor))
    rows = session.exec(statement.order_by(col(VersionRow.number).desc()).limit(limit + 1)).all()
    items = build_views(session, name, rows[:limit])
    return VersionPage(items=items, next_cursor=str(items[-1].number) if len(rows) > limit else "")


def show(session: Session, actor: Actor, name: AdapterName, selector: Selector) -> VersionView:
    return build_view(session, name, find(session, actor, name, selector))


def build_view(session: Session, name: AdapterName, row: VersionRow) -> VersionView:
    return build_views(session, name, [row])[0]


_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
_ALIASES = select(AliasRow.version_id, AliasRow.alias).where(col(AliasRow.version_id).in_(_IDS))
_BASES = select(BaseRow.id, BaseRow.name).where(col(BaseRow.id).in_(_IDS))
_DAMAGED = (
    select(VersionFileRow.version_id, VersionFileRow.path)
    .join(BlobRow, col(BlobRow.digest) == col(VersionFileRow.digest))
    .where(col(VersionFileRow.version_id).in_(_IDS), col(BlobRow.state) == BlobState.CORRUPT)
    .order_by(col(VersionFileRow.path))
)


def build_views(session: Session, name: AdapterName, rows: Sequence[VersionRow]) -> list[VersionView]:
    """Rows of one adapter as they leave the server, in the same order; four statements however many they are."""
    ids = [row.id or 0 for row in rows]
    judged = newest_verdicts(session, rows)
    damaged, aliases = _by_version(session, _DAMAGED, ids), _by_version(session, _ALIASES, ids)
    bases = dict(session.exec(_BASES, params={"ids": sorted({row.base_id for row in rows})}).all())
    manifests = [Manifest.model_validate_json(row.manifest) for row in rows]
    return [
        _view(name, row, bases[row.base_id], manifest, judged[row.id or 0], aliases[row.id or 0], damaged[row.id or 0])
        for row, manifest in zip(rows, manifests, strict=True)
    ]


def _by_version(session: Session, statement: Any, ids: Sequence[int]) -> dict[int, list[str]]:
    """The texts that `statement` finds for each version."""
    found: dict[int, list[str]] = defaultdict(list)
    for version_id, text in session.exec(statement, params={"ids": list(ids)}):
        found[version_id].append(text)
    return found


_AS_STORED = (
    *("facts", "size_bytes", "message", "created_at", "created_by"),
    *("yanked_at", "yank_reason", "quarantined_at", "quarantine_reason"),
)


def build_new_view(
    name: AdapterName, row: VersionRow, base: str, manifest: Manifest, written: Iterable[VerdictRow], aliases: list[str]
) -> VersionView:
    """The same for a version that this transaction makes, from what it has written: nothing is read again."""
    judged = [recorded.from_row(verdict, row.digest, base) for verdict in written]
    return _view(name, row, base, manifest, judged, aliases)


def _view(
    name: AdapterName, row: VersionRow, base: str, manifest: Manifest, judged: list[Verdict], aliases: list[str],
    damaged: Sequence[str] = (),
) -> VersionView:  # fmt: skip
    return VersionView(
        name=str(name),
        number=row.number,
        digest=Digest(row.digest),
        base=base,
        base_fingerprint=manifest.base.fingerprint,
        files=list(manifest.files),
        parents=list(manifest.parents),
        verdicts=judged,
        aliases=sorted(aliases),
        damaged=list(damaged),
        provenance=manifest.provenance,
        **{column: getattr(row, column) for column in _AS_STORED},
    )


_VERDICTS = (
    select(VerdictRow, BaseRow.name)
    .join(VersionRow, col(VersionRow.id) == col(VerdictRow.version_id))
    .join(BaseRow, col(BaseRow.id) == col(VerdictRow.base_id))
    .where(col(VersionRow.id).in_(_IDS), _newest_verdict(), col(VerdictRow.check).in_(list(Check)))
    .order_by(col(VerdictRow.id))
)
"""Not those of a check that only a newer program knows: it may be judging beside this one already."""


def newest_verdicts(session: Session, rows: Iterable[VersionRow]) -> dict[int, list[Verdict]]:
    """Version id → its verdicts that count, oldest first. Every id of `rows` is there."""
    by_id = {row.id or 0: row for row in rows}
    found: dict[int, list[Verdict]] = {version_id: [] for version_id in by_id}
    for row, base in session.exec(_VERDICTS, params={"ids": list(by_id)}):
        found[row.version_id].append(recorded.from_row(row, by_id[row.version_id].digest, base))
    return found
