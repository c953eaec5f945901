"""Withdraw versions: yank and unyank, quarantine and end a quarantine.

- A change locks the row. Row and event are one transaction; the metadata backup is written after it.
- `quarantine` of a row grows with each quarantine, and when one or a yank ends, so the newest record differs from
  older ones, and a cached look-up sees that the version changed.
- All who may promote may withdraw and undo a yank; only an owner ends a quarantine.
"""

from typing import Any

from sqlmodel import Session, select

from registry.api.catalog import VersionView
from registry.errors import NotFound
from registry.events import EventType
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import audit
from registry.server.actors import Actor
from registry.server.catalog import availability, versions
from registry.server.database import db
from registry.server.database.models import VersionRow
from registry.server.promotion import moves
from registry.server.serving import reports


def yank(session: Session, actor: Actor, name: AdapterName, version: VersionRow, *, reason: str) -> VersionView:
    """Withdraw a version: aliases that point at it answer YANKED until they move. A second yank changes nothing."""
    lock(session, actor, Scope.PROMOTE, name, version)
    _refuse_quarantined(name, version)
    if version.yanked_at is None:
        values = {"yanked_at": db.now(), "yank_reason": reason}
        change(session, actor, name, version, EventType.VERSION_YANK, reason, **values)
    return view_with_nodes(session, name, version)


def unyank(session: Session, actor: Actor, name: AdapterName, version: VersionRow, *, reason: str) -> VersionView:
    """Undo a yank: the version is what it was before, aliases that still point at it included."""
    lock(session, actor, Scope.PROMOTE, name, version)
    _refuse_quarantined(name, version)
    if version.yanked_at is not None:
        values = {"yanked_at": None, "yank_reason": "", "quarantine": version.quarantine + 1}
        change(session, actor, name, version, EventType.VERSION_UNYANK, reason, **values)
    return versions.build_view(session, name, version)


def quarantine(session: Session, actor: Actor, name: AdapterName, version: VersionRow, *, reason: str) -> VersionView:
    """Withhold a version's bytes from all who may not promote. A second quarantine changes nothing."""
    lock(session, actor, Scope.PROMOTE, name, version)
    if version.quarantined_at is None:
        values = {"quarantined_at": db.now(), "quarantine_reason": reason, "quarantine": version.quarantine + 1}
        change(session, actor, name, version, EventType.VERSION_QUARANTINE, reason, **values)
    return view_with_nodes(session, name, version)


def unquarantine(session: Session, actor: Actor, name: AdapterName, version: VersionRow, *, reason: str) -> VersionView:
    """End a quarantine: the version is what it was before, aliases that still point at it included."""
    lock(session, actor, Scope.ADMIN, name, version)
    if version.quarantined_at is not None:
        values = {"quarantined_at": None, "quarantine_reason": "", "quarantine": version.quarantine + 1}
        change(session, actor, name, version, EventType.VERSION_UNQUARANTINE, reason, **values)
    return versions.build_view(session, name, version)


def view_with_nodes(session: Session, name: AdapterName, version: VersionRow) -> VersionView:
    """The view with the nodes that still serve the version: withdrawing removes nothing from an engine."""
    view = versions.build_view(session, name, version)
    return view.model_copy(update={"served_on": reports.find_serving_nodes(session, name, version.digest)})


def lock(
    session: Session, actor: Actor, scope: Scope, name: AdapterName, version: VersionRow, *,
    include_deleted: bool = False,
) -> None:  # fmt: skip
    """Check the right and lock the adapter, whose `main` may move, and the row as it is now.

    `NotFound` (VERSION_DELETED) if the version was deleted meanwhile, unless `include_deleted`.

    Without the lock a concurrent metadata backup could miss the change: setting an empty `recorded_at` to empty again
    writes nothing.
    """
    actor.require(scope, name)
    versions.find_adapter(session, actor, name, lock=True)
    statement = select(VersionRow).where(VersionRow.id == version.id).with_for_update()
    if session.exec(statement.execution_options(populate_existing=True)).first() is None:
        raise NotFound("VERSION_UNKNOWN", f"the version {version.digest} of '{name}' was deleted in the meantime")
    if not include_deleted:
        availability.require_not_deleted(name, version)


def _refuse_quarantined(name: AdapterName, version: VersionRow) -> None:
    if version.quarantined_at is not None:
        raise availability.quarantined_error(name, version)


def change(
    session: Session, actor: Actor, name: AdapterName, version: VersionRow, event_type: EventType, reason: str,
    **values: Any,
) -> None:  # fmt: skip
    """Change the row and write the event. `main` moves to the newest version that is available then."""
    session.add(version.sqlmodel_update(values | {"recorded_at": None}))
    audit.append(session, actor, event_type, f"{name}@{version.number}", {"digest": version.digest, "reason": reason})
    session.flush()
    moves.follow_newest(session, actor, name, version.adapter_id, f"{version.number}: {event_type}")
