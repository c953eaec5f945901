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
def restore(session: Session, actor: Actor, name: AdapterName, record: VersionRecord) -> None:
    """Withdraw a version, or end that, as its record says, unless the row knows of something newer."""
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
