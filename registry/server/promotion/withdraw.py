"""Withdrawal: yank a version and take that back, put one in quarantine and release it.

Invariants
- Two changes of a version wait for each other. Row and event are one transaction, and the row's record beside the
  blobs is written anew after it.
- `quarantine` of a row grows by one with each quarantine and when one or a yank ends, so the newest record is told from
  older ones, and whoever remembers a look-up sees that it changed.
- Who may promote may withdraw, and may take a yank back; only an owner releases.
- What records tell and the row does not know (the database is from before) is done again by a re-index.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from registry.api.catalog import VersionView
from registry.errors import NotFound
from registry.events import EventType
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import audit
from registry.server.actors import Actor
from registry.server.catalog import availability, metadata_backup, versions
from registry.server.catalog.records import VersionRecord
from registry.server.database import db
from registry.server.database.models import AdapterRow, VersionRow
from registry.server.serving import reports
from registry.server.storage.blobs import BlobStore, Stat


def yank(session: Session, actor: Actor, name: AdapterName, version: VersionRow, *, reason: str) -> VersionView:
    """Withdraw a version: aliases that point at it answer YANKED until they move. Twice keeps the first reason."""
    actor.require(Scope.PROMOTE, name)
    _lock(session, name, version)
    if version.quarantined_at is not None:
        raise availability.quarantined_error(name, version)
    if version.yanked_at is None:
        version.yanked_at = db.now()
        version.yank_reason = reason
        _changed(session, actor, name, version, EventType.VERSION_YANK, reason)
    return _view(session, name, version)


def unyank(session: Session, actor: Actor, name: AdapterName, version: VersionRow, *, reason: str) -> VersionView:
    """Take a yank back: the version is what it was before, aliases that still point at it included."""
    actor.require(Scope.PROMOTE, name)
    _lock(session, name, version)
    if version.quarantined_at is not None:
        raise availability.quarantined_error(name, version)
    if version.yanked_at is not None:
        version.yanked_at = None
        version.yank_reason = ""
        version.quarantine += 1
        _changed(session, actor, name, version, EventType.VERSION_UNYANK, reason)
    return versions.build_view(session, name, version)


def quarantine(session: Session, actor: Actor, name: AdapterName, version: VersionRow, *, reason: str) -> VersionView:
    """Keep a version's bytes back from everybody but those who may promote. Twice keeps the first reason."""
    actor.require(Scope.PROMOTE, name)
    _lock(session, name, version)
    if version.quarantined_at is None:
        version.quarantined_at = db.now()
        version.quarantine_reason = reason
        version.quarantine += 1
        _changed(session, actor, name, version, EventType.VERSION_QUARANTINE, reason)
    return _view(session, name, version)


def unquarantine(session: Session, actor: Actor, name: AdapterName, version: VersionRow, *, reason: str) -> VersionView:
    """End a quarantine: the version is what it was before, aliases that still point at it included."""
    actor.require(Scope.ADMIN, name)
    _lock(session, name, version)
    if version.quarantined_at is not None:
        version.quarantined_at = None
        version.quarantine_reason = ""
        version.quarantine += 1
        _changed(session, actor, name, version, EventType.VERSION_UNQUARANTINE, reason)
    return versions.build_view(session, name, version)


def _view(session: Session, name: AdapterName, version: VersionRow) -> VersionView:
    """With the nodes that still have it: withdrawing takes nothing out of an engine by itself."""
    view = versions.build_view(session, name, version)
    return view.model_copy(update={"served_on": reports.find_serving_nodes(session, name, version.digest)})


def _lock(session: Session, name: AdapterName, version: VersionRow) -> None:
    """The row as it is now, until this transaction ends. Whoever records the version as it was before sees the change:
    an empty `recorded_at` that is emptied would not be written, and the withdrawal never recorded."""
    mine = select(VersionRow).where(VersionRow.id == version.id).with_for_update()
    if session.exec(mine.execution_options(populate_existing=True)).first() is None:
        raise NotFound("VERSION_UNKNOWN", f"the version {version.digest} of '{name}' was deleted meanwhile")


def _changed(
    session: Session, actor: Actor, name: AdapterName, version: VersionRow, event_type: EventType, reason: str
) -> None:
    version.recorded_at = None
    session.add(version)
    audit.append(session, actor, event_type, f"{name}@{version.number}", {"digest": version.digest, "reason": reason})
    session.flush()


# ------------------------------------------------------------------ after a restore
def restore_withdrawals(engine: Engine, blobs: BlobStore, actor: Actor, *, dry_run: bool) -> int:
    """Withdraw, or take back, what was so after the database's backup; how many versions change."""
    count = 0
    listed = sorted(blobs.list(metadata_backup.VERSIONS), key=lambda stat: stat.key)
    for location, stats in groupby(listed, key=lambda stat: stat.key.split("/")[2:4]):
        name = AdapterName(*location)
        found = find_unknown_withdrawals(engine, blobs, name, stats)
        count += len(found)
        for record in () if dry_run else found:
            with db.session(engine) as session:
                _again(session, actor, name, record)
    return count


def find_unknown_withdrawals(
    engine: Engine, blobs: BlobStore, name: AdapterName, listed: Iterable[Stat]
) -> list[VersionRecord]:
    """Records of an adapter, listed before, that tell of a withdrawal, or of its end, which the row does not know."""
    by_number: dict[int, list[Stat]] = {}
    for stat in listed:
        by_number.setdefault(int(stat.key.split("/")[4]), []).append(stat)
    with db.session(engine, write=False) as session:
        joined = select(AdapterRow, VersionRow).join(VersionRow, col(VersionRow.adapter_id) == col(AdapterRow.id))
        rows = session.exec(joined.where(versions.named(name), col(VersionRow.number).in_(by_number))).all()
    unknown = []
    for adapter, row in rows:
        try:
            own = metadata_backup.version_record(adapter, row).digest.hex
        except ValueError:  # a manifest that cannot be read: a check tells of it
            continue
        others = [stat for stat in by_number[row.number] if not stat.key.endswith(own)]
        record = metadata_backup.newest_record(
            blobs, [(stat.key, stat.size_bytes) for stat in others], name, row.number, []
        )
        if (
            record
            and record.manifest.digest == row.digest
            and metadata_backup.revision(record) > metadata_backup.revision(row)
        ):
            unknown.append(record)
    return unknown


def _again(session: Session, actor: Actor, name: AdapterName, record: VersionRecord) -> None:
    statement = select(VersionRow).join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    mine = statement.where(versions.named(name), col(VersionRow.number) == record.number)
    version = session.exec(mine.with_for_update(of=VersionRow)).one_or_none()
    if version is None or metadata_backup.revision(version) >= metadata_backup.revision(record):
        return
    held, yanked = version.quarantined_at is not None, version.yanked_at is not None
    version.yanked_at, version.yank_reason = record.yanked_at, record.yank_reason
    version.quarantine, version.quarantined_at = record.quarantine, record.quarantined_at
    version.quarantine_reason = record.quarantine_reason
    if held != (record.quarantined_at is not None):
        event_type = EventType.VERSION_UNQUARANTINE if held else EventType.VERSION_QUARANTINE
        _changed(session, actor, name, version, event_type, record.quarantine_reason)
    if yanked != (record.yanked_at is not None):
        event_type = EventType.VERSION_UNYANK if yanked else EventType.VERSION_YANK
        _changed(session, actor, name, version, event_type, record.yank_reason)
    session.add(version)
