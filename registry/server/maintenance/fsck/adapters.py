"""Adapters: numbers without a gap, manifests that hash to their digest, files, aliases and events that agree.

Invariants
- One adapter is one snapshot; what the store has of it (records) is looked up after the snapshot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import or_
from sqlmodel import Session, col, select

from registry import lineage, names
from registry.errors import Invalid, RegistryError
from registry.events import EventType
from registry.manifest import Manifest
from registry.names import AdapterName
from registry.server import audit
from registry.server.catalog import metadata_backup
from registry.server.database.models import (
    AdapterRow,
    AliasMoveRow,
    AliasRow,
    BaseRow,
    EdgeRow,
    EventRow,
    VersionFileRow,
    VersionInputRow,
    VersionRow,
)
from registry.server.maintenance.fsck.page import Page
from registry.server.maintenance.recovery import missing
from registry.server.promotion import withdraw
from registry.server.promotion.aliases import BROKE_GLASS, NEXT

BATCH = 20
CLOCKS_DIFFER = timedelta(hours=1)
"""How far the time of a move may be from its event's. When a clock was set back by more, a move is right after the one
before, because the moves of an alias keep their order."""
MADE = (EventType.VERSION_PUSH, EventType.VERSION_REINDEX)


def check(page: Page, after: str) -> str:
    """The next adapters after this id; the last id, or empty at the end."""
    if not (after.isascii() and after.isdigit() and len(after) < 12):
        raise Invalid("REQUEST_INVALID", "cursor: not one that this server gave")
    with page.snapshot() as session:
        statement = select(AdapterRow).where(col(AdapterRow.id) > int(after)).order_by(col(AdapterRow.id)).limit(BATCH)
        rows = session.exec(statement).all()
    for row in rows:
        with page.snapshot() as session:
            versions = _versions(page, session, row)
            _aliases(page, session, row, {version.id or 0: version for version in versions})
        _records(page, row)
        page.count("adapters")
    return str(rows[-1].id) if len(rows) == BATCH else ""


# ------------------------------------------------------------------ versions
def _versions(page: Page, session: Session, adapter: AdapterRow) -> Sequence[VersionRow]:
    name = f"{adapter.namespace}/{adapter.name}"
    fresh = session.get_one(AdapterRow, adapter.id, populate_existing=True)
    of_adapter = select(VersionRow).where(VersionRow.adapter_id == adapter.id).order_by(col(VersionRow.number))
    versions = session.exec(of_adapter).all()
    numbers = [version.number for version in versions]
    if numbers != list(range(1, fresh.newest_number + 1)):
        message = f"has {len(numbers)} versions up to {max(numbers, default=0)} and counts {fresh.newest_number}"
        page.found("version.numbers_broken", name, message)
    ids = select(VersionRow.id).where(VersionRow.adapter_id == adapter.id)
    files = session.exec(select(VersionFileRow).where(col(VersionFileRow.version_id).in_(ids))).all()
    edges = session.exec(select(EdgeRow).where(col(EdgeRow.child_id).in_(ids))).all()
    for version in versions:
        mine = [row for row in files if row.version_id == version.id]
        _contents(
            page, session, f"{name}@{version.number}", version, mine, [e for e in edges if e.child_id == version.id]
        )
    _version_events(page, session, name, numbers)
    page.count("versions", len(versions))
    return versions


def _contents(
    page: Page,
    session: Session,
    location: str,
    version: VersionRow,
    files: list[VersionFileRow],
    edges: list[EdgeRow],
) -> None:
    try:
        manifest = Manifest.parse(version.manifest.encode())
    except RegistryError as e:
        page.found("version.manifest_broken", location, e.detail[:500])
        return
    if manifest.digest != version.digest:
        page.found(
            "version.manifest_differs", location, "its manifest has another digest",
            expected=version.digest, found=manifest.digest,
        )  # fmt: skip
    told = {(f.path, str(f.digest), f.size_bytes, f.media_type) for f in manifest.files}
    if told != {(f.path, f.digest, f.size_bytes, f.media_type) for f in files}:
        page.found("version.files_differ", location, "its rows of files are not those of its manifest")
    if {(str(e.relation), str(e.digest)) for e in manifest.parents} != {(e.relation, e.parent_digest) for e in edges}:
        page.found("version.parents_differ", location, "its rows of parents are not those of its manifest")
    _inputs(page, session, location, version, manifest)
    if manifest.size_bytes != version.size_bytes:
        page.found("version.size_differs", location, f"counts {version.size_bytes} bytes, not {manifest.size_bytes}")
    base = session.get(BaseRow, version.base_id)
    if base is None or (base.name, base.fingerprint) != (manifest.base.name, manifest.base.fingerprint):
        page.found("version.base_differs", location, "its base is not the one of its manifest")


def _inputs(page: Page, session: Session, location: str, version: VersionRow, manifest: Manifest) -> None:
    statement = select(VersionInputRow).where(VersionInputRow.version_id == version.id)
    rows = session.exec(statement.order_by(col(VersionInputRow.place))).all()
    if [row.node for row in rows] != [told.node for told in lineage.inputs(manifest.provenance, version.facts)]:
        page.found("version.inputs_differ", location, "its rows of inputs are not those of its manifest and its facts")


def _version_events(page: Page, session: Session, name: str, numbers: list[int]) -> None:
    """Each version was made by exactly one event, and no event tells of a version that is not there."""
    found = Counter(f"{name}@{number}" for number, _ in _told(session, name, "@", MADE))
    wanted = {f"{name}@{number}" for number in numbers}
    for location in sorted(wanted | set(found)):
        if found[location] != 1 or location not in wanted:
            there = "" if location in wanted else ", and there is no such version"
            page.found("version.event_count", location, f"{found[location]} events tell of its making{there}")


def _told(session: Session, name: str, mark: str, actions: Sequence[str]) -> list[tuple[str, EventRow]]:
    """The events of these actions about an adapter, whatever it was called then, with what follows its name."""
    called = [*audit.read_former_names(session, AdapterName.parse(name)), name]
    about = or_(*(col(EventRow.object).startswith(one + mark, autoescape=True) for one in called))
    statement = select(EventRow).where(col(EventRow.action).in_(actions), about).order_by(col(EventRow.seq))
    return [(event.object.partition(mark)[2], event) for event in session.exec(statement)]


# ------------------------------------------------------------------ aliases
def _aliases(page: Page, session: Session, adapter: AdapterRow, versions: dict[int, VersionRow]) -> None:
    name = f"{adapter.namespace}/{adapter.name}"
    aliases = {row.alias: row for row in session.exec(select(AliasRow).where(AliasRow.adapter_id == adapter.id)).all()}
    statement = select(AliasMoveRow).where(AliasMoveRow.adapter_id == adapter.id)
    moves: dict[str, list[AliasMoveRow]] = {alias: [] for alias in aliases}
    for move in session.exec(statement.order_by(col(AliasMoveRow.alias), col(AliasMoveRow.generation))).all():
        moves.setdefault(move.alias, []).append(move)
    events: dict[str, list[EventRow]] = {}
    for alias, event in _told(session, name, ":", (EventType.ALIAS_MOVE,)):
        events.setdefault(alias, []).append(event)
    for alias, chain in moves.items():
        location = f"{name}:{alias}"
        _chain(page, location, chain)
        row = aliases.get(alias)
        newest = chain[-1] if chain else None
        if (
            row is None
            or newest is None
            or (row.version_id, row.generation) != (newest.to_version_id, newest.generation)
        ):
            page.found("alias.row_differs", location, "does not point where its newest move says")
        elif row.version_id not in versions:
            page.found("alias.version_foreign", location, "points at a version of another adapter")
        told = events.pop(alias, [])
        if len(told) != len(chain):
            page.found("alias.event_count", location, f"has {len(chain)} moves and {len(told)} events")
        else:
            _as_told(page, location, chain, told, versions)
        page.count("moves", len(chain))
    for alias in sorted(events):
        page.found("alias.event_count", f"{name}:{alias}", "has events and no moves")
    main = aliases.get(names.NEWEST)
    newest_id = max(versions, key=lambda i: versions[i].number, default=None)
    if (main.version_id if main else None) != newest_id:
        page.found("alias.main_behind", f"{name}:{names.NEWEST}", "does not point at the newest version")


def _chain(page: Page, location: str, chain: list[AliasMoveRow]) -> None:
    """Generations 1, 2, 3 … each beginning where the one before ended."""
    held: int | None = None
    for number, move in enumerate(chain, 1):
        if move.generation != number or move.from_version_id != held:
            page.found("alias.chain_broken", location, f"its history breaks at generation {move.generation}")
            return
        held = move.to_version_id


def _as_told(
    page: Page, location: str, chain: list[AliasMoveRow], told: list[EventRow], versions: dict[int, VersionRow]
) -> None:
    """Each move says what its event says, which the log can prove: an edited history answers an auditor wrongly."""
    before = None
    for move, event in zip(chain, sorted(told, key=lambda e: int(e.detail.get("generation", 0))), strict=True):
        version, detail = versions.get(move.to_version_id or 0), event.detail
        moved = (move.generation, version.digest if version else "", move.reason, _broken(move.evidence))
        said = tuple(detail.get(key) for key in ("generation", "digest", "reason", BROKE_GLASS))
        kept_in_order = before is not None and event.at <= before and move.at == before + NEXT
        when = kept_in_order or abs(move.at - event.at) <= CLOCKS_DIFFER
        before = move.at
        if (moved, move.actor) != (said, event.actor) or not when:
            message = f"generation {move.generation} is not what event {event.position or event.seq} tells of it"
            page.found("alias.event_differs", location, message)


def _broken(evidence: list[dict[str, Any]]) -> list[str] | None:
    return next((item["missing"] for item in evidence if item.get("check") == BROKE_GLASS), None)


# ------------------------------------------------------------------ records
def _records(page: Page, adapter: AdapterRow) -> None:
    """Each version that was recorded still has its record, and none that tells of a withdrawal that the row missed."""
    name = AdapterName(adapter.namespace, adapter.name)
    with page.snapshot() as session:
        recorded = missing.recorded(session, name)
    listed = list(page.blobs.list(metadata_backup.folder_of(adapter.namespace, adapter.name)))
    for number in missing.lost(page.engine, page.blobs, name, recorded, listed):
        told = "has no record beside the blobs, or one from before it was withdrawn: a re-index would not find it so"
        page.found("record.missing", f"{name}@{number}", told)
    for record in withdraw.unknown(page.engine, page.blobs, name, listed):
        told = "it was withdrawn (yanked, put in quarantine), or that was ended, after this database's backup"
        page.found("record.withdrawal_unknown", f"{name}@{record.number}", told)
    page.count("records", len({stat.key.rpartition("/")[0] for stat in listed}))
