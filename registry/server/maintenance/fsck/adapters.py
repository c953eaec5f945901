"""Check adapters: counters, manifests, files, aliases and events that agree. One adapter is read in one snapshot."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import or_
from sqlmodel import Session, col, select

from registry import lineage, names
from registry.bases import UNREGISTERED
from registry.errors import RegistryError, invalid_cursor
from registry.events import EventType
from registry.names import AdapterName
from registry.server import audit
from registry.server.catalog.availability import is_withdrawn
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
from registry.server.maintenance.fsck.run import FsckRun
from registry.server.promotion.move_decisions import BREAK_GLASS
from registry.server.promotion.moves import TIME_STEP
from registry.versions.manifest import Manifest

BATCH = 20
CLOCK_TOLERANCE = timedelta(hours=1)
"""How far the time of a move may be from its event's. If a clock was set back by more, a move is `TIME_STEP` after the
previous one, because the moves of an alias keep their order."""


def check_adapters(run: FsckRun, after: str) -> str:
    """Check the next adapters after this id; return the last id, empty at the end."""
    if not (after.isascii() and after.isdigit() and len(after) < 12):
        raise invalid_cursor()
    with run.snapshot() as session:
        statement = select(AdapterRow).where(col(AdapterRow.id) > int(after)).order_by(col(AdapterRow.id)).limit(BATCH)
        rows = session.exec(statement).all()
    for row in rows:
        with run.snapshot() as session:
            versions = _check_versions(run, session, row)
            _check_aliases(run, session, row, {version.id or 0: version for version in versions})
        run.count("adapters")
    return str(rows[-1].id) if len(rows) == BATCH else ""


# ------------------------------------------------------------------ versions
def _check_versions(run: FsckRun, session: Session, adapter: AdapterRow) -> Sequence[VersionRow]:
    name = f"{adapter.namespace}/{adapter.name}"
    current = session.get_one(AdapterRow, adapter.id, populate_existing=True)
    statement = select(VersionRow).where(VersionRow.adapter_id == adapter.id).order_by(col(VersionRow.number))
    versions = session.exec(statement).all()
    numbers = [version.number for version in versions]
    if numbers and numbers[-1] > current.newest_number:
        message = f"has the version {numbers[-1]} and counts {current.newest_number}"
        run.add("version.numbers_broken", name, message)
    ids = select(VersionRow.id).where(VersionRow.adapter_id == adapter.id)
    files = session.exec(select(VersionFileRow).where(col(VersionFileRow.version_id).in_(ids))).all()
    edges = session.exec(select(EdgeRow).where(col(EdgeRow.child_id).in_(ids))).all()
    for version in versions:
        own_files = [row for row in files if row.version_id == version.id]
        own_edges = [row for row in edges if row.child_id == version.id]
        _check_contents(run, session, f"{name}@{version.number}", version, own_files, own_edges)
    _check_version_events(run, session, name, numbers)
    run.count("versions", len(versions))
    return versions


def _check_contents(
    run: FsckRun,
    session: Session,
    location: str,
    version: VersionRow,
    files: list[VersionFileRow],
    edges: list[EdgeRow],
) -> None:
    try:
        manifest = Manifest.parse(version.manifest.encode())
    except RegistryError as e:
        run.add("version.manifest_broken", location, e.detail[:500])
        return
    if manifest.digest != version.digest:
        message = "its manifest has another digest"
        run.add("version.manifest_differs", location, message, expected=version.digest, actual=manifest.digest)
    declared = {(f.path, str(f.digest), f.size_bytes, f.media_type) for f in manifest.files}
    if version.purged_at is not None:
        declared = set()
    if declared != {(f.path, f.digest, f.size_bytes, f.media_type) for f in files}:
        run.add("version.files_differ", location, "its rows of files differ from its manifest")
    if {(str(e.relation), str(e.digest)) for e in manifest.parents} != {(e.relation, e.parent_digest) for e in edges}:
        run.add("version.parents_differ", location, "its rows of parents differ from its manifest")
    _check_inputs(run, session, location, version, manifest)
    if manifest.size_bytes != version.size_bytes:
        run.add("version.size_differs", location, f"counts {version.size_bytes} bytes, not {manifest.size_bytes}")
    base = session.get(BaseRow, version.base_id)
    is_same = base is not None and (base.name, base.fingerprint) == (manifest.base.name, manifest.base.fingerprint)
    if not is_same and manifest.base.fingerprint != UNREGISTERED:
        run.add("version.base_differs", location, "its base differs from its manifest")


def _check_inputs(run: FsckRun, session: Session, location: str, version: VersionRow, manifest: Manifest) -> None:
    statement = select(VersionInputRow).where(VersionInputRow.version_id == version.id)
    rows = session.exec(statement.order_by(col(VersionInputRow.position))).all()
    if [row.node for row in rows] != [item.node for item in lineage.inputs(manifest.provenance, version.facts)]:
        run.add("version.inputs_differ", location, "its rows of inputs differ from its manifest and its facts")


def _check_version_events(run: FsckRun, session: Session, name: str, numbers: list[int]) -> None:
    """Check that each version has exactly one event of its creation, and each such event a version."""
    counts = Counter(f"{name}@{number}" for number, _ in _select_events(session, name, "@", (EventType.VERSION_PUSH,)))
    versions = {f"{name}@{number}" for number in numbers}
    for version in sorted(versions | set(counts)):
        if counts[version] != 1 or version not in versions:
            suffix = "" if version in versions else ", and there is no such version"
            run.add("version.event_count", version, f"has {counts[version]} events of its creation{suffix}")


def _select_events(session: Session, name: str, separator: str, actions: Sequence[str]) -> list[tuple[str, EventRow]]:
    """Select the events of these actions about an adapter, under all its names, with what follows the name."""
    all_names = [*audit.read_former_names(session, AdapterName.parse(name)), name]
    about = or_(*(col(EventRow.object).startswith(each + separator, autoescape=True) for each in all_names))
    statement = select(EventRow).where(col(EventRow.action).in_(actions), about).order_by(col(EventRow.seq))
    return [(event.object.partition(separator)[2], event) for event in session.exec(statement)]


# ------------------------------------------------------------------ aliases
def _check_aliases(run: FsckRun, session: Session, adapter: AdapterRow, versions: dict[int, VersionRow]) -> None:
    name = f"{adapter.namespace}/{adapter.name}"
    aliases = {row.alias: row for row in session.exec(select(AliasRow).where(AliasRow.adapter_id == adapter.id)).all()}
    statement = select(AliasMoveRow).where(AliasMoveRow.adapter_id == adapter.id)
    moves: dict[str, list[AliasMoveRow]] = {alias: [] for alias in aliases}
    for move in session.exec(statement.order_by(col(AliasMoveRow.alias), col(AliasMoveRow.generation))).all():
        moves.setdefault(move.alias, []).append(move)
    events: dict[str, list[EventRow]] = {}
    for alias, event in _select_events(session, name, ":", (EventType.ALIAS_MOVE, EventType.ALIAS_DELETE)):
        events.setdefault(alias, []).append(event)
    for alias, history in moves.items():
        location = f"{name}:{alias}"
        _check_generations(run, location, history)
        _check_alias_row(run, location, aliases.get(alias), history, versions)
        alias_events = events.pop(alias, [])
        if len(alias_events) != len(history):
            run.add("alias.event_count", location, f"has {len(history)} moves and {len(alias_events)} events")
        else:
            _compare_with_events(run, location, history, alias_events, versions)
        run.count("moves", len(history))
    for alias in sorted(events):
        run.add("alias.event_count", f"{name}:{alias}", "has events and no moves")
    main = aliases.get(names.NEWEST)
    present = [version for version in versions.values() if version.deleted_at is None]
    newest = max(
        present,
        key=lambda version: (not is_withdrawn(version), not version.skipped_by_main, version.number),
        default=None,
    )
    newest_id = newest.id if newest is not None else None
    if (main.version_id if main else None) != newest_id:
        run.add("alias.main_behind", f"{name}:{names.NEWEST}", "does not point at the newest version that it follows")


def _check_alias_row(
    run: FsckRun, location: str, row: AliasRow | None, history: list[AliasMoveRow], versions: dict[int, VersionRow]
) -> None:
    newest = history[-1] if history else None
    if row is None and newest is not None and newest.to_version_id is None:
        return  # it was deleted
    if row is None or newest is None or (row.version_id, row.generation) != (newest.to_version_id, newest.generation):
        run.add("alias.row_differs", location, "does not point where its newest move says")
    elif row.version_id not in versions:
        run.add("alias.version_of_other_adapter", location, "points at a version of another adapter")


def _check_generations(run: FsckRun, location: str, history: list[AliasMoveRow]) -> None:
    """Check that generations are 1, 2, 3 … and that each begins where the previous one ended."""
    version_id: int | None = None
    for number, move in enumerate(history, 1):
        if move.generation != number or move.from_version_id != version_id:
            run.add("alias.chain_broken", location, f"its history breaks at generation {move.generation}")
            return
        version_id = move.to_version_id


def _compare_with_events(
    run: FsckRun, location: str, history: list[AliasMoveRow], events: list[EventRow], versions: dict[int, VersionRow]
) -> None:
    """Check that each move says what its event says, which the audit log can prove."""
    previous_at = None
    for move, event in zip(history, sorted(events, key=lambda e: int(e.detail.get("generation", 0))), strict=True):
        version = versions.get(move.to_version_id or 0)
        digest = version.digest if version else None if move.to_version_id is None else ""
        in_row = (move.actor, move.generation, digest, move.reason, _missing_evidence(move.evidence))
        keys = ("generation", "digest", "reason", BREAK_GLASS)
        in_event = (event.actor, *(event.detail.get(key) for key in keys))
        ordered = previous_at is not None and event.at <= previous_at and move.at == previous_at + TIME_STEP
        same_time = ordered or abs(move.at - event.at) <= CLOCK_TOLERANCE
        previous_at = move.at
        if in_row != in_event or not same_time:
            message = f"generation {move.generation} differs from event {event.position or event.seq} of the audit log"
            run.add("alias.event_differs", location, message)


def _missing_evidence(evidence: list[dict[str, Any]]) -> list[str] | None:
    return next((item["missing"] for item in evidence if item.get("check") == BREAK_GLASS), None)
