"""Withdrawal: yank a version and take that back, put one in quarantine and release it.

Invariants
- Row and event are one transaction, and the row's record beside the blobs is written anew after it.
- `quarantine` of a row grows by one with each quarantine and when one or a yank ends, so the newest record is told from
  older ones, and whoever remembers a look-up sees that it changed.
- Who may promote may withdraw, and may take a yank back; only an owner releases.

Example
    >>> withdrawal.quarantine(session, actor, name, version, reason="reported as poisoned")
"""

from __future__ import annotations

from sqlmodel import Session

from registry.names import AdapterName
from registry.server import audit, catalog, db, fleet, withdrawn
from registry.server.actors import Actor
from registry.server.tables import VersionRow
from registry.wire import VersionView


def yank(session: Session, actor: Actor, name: AdapterName, version: VersionRow, *, reason: str) -> VersionView:
    """Withdraw a version: aliases that point at it answer YANKED until they move. Twice keeps the first reason."""
    actor.demand("promote", name)
    if version.quarantined_at is not None:
        raise withdrawn.quarantined(name, version)
    if version.yanked_at is None:
        version.yanked_at = db.now()
        version.yank_reason = reason
        _changed(session, actor, name, version, "version.yank", reason)
    return _view(session, name, version)


def unyank(session: Session, actor: Actor, name: AdapterName, version: VersionRow, *, reason: str) -> VersionView:
    """Take a yank back: the version is what it was before, aliases that still point at it included."""
    actor.demand("promote", name)
    if version.quarantined_at is not None:
        raise withdrawn.quarantined(name, version)
    if version.yanked_at is not None:
        version.yanked_at = None
        version.yank_reason = ""
        version.quarantine += 1
        _changed(session, actor, name, version, "version.unyank", reason)
    return catalog.view(session, name, version)


def quarantine(session: Session, actor: Actor, name: AdapterName, version: VersionRow, *, reason: str) -> VersionView:
    """Keep a version's bytes back from everybody but those who may promote. Twice keeps the first reason."""
    actor.demand("promote", name)
    if version.quarantined_at is None:
        version.quarantined_at = db.now()
        version.quarantine_reason = reason
        version.quarantine += 1
        _changed(session, actor, name, version, "version.quarantine", reason)
    return _view(session, name, version)


def release(session: Session, actor: Actor, name: AdapterName, version: VersionRow, *, reason: str) -> VersionView:
    """End a quarantine: the version is what it was before, aliases that still point at it included."""
    actor.demand("admin", name)
    if version.quarantined_at is not None:
        version.quarantined_at = None
        version.quarantine_reason = ""
        version.quarantine += 1
        _changed(session, actor, name, version, "version.release", reason)
    return catalog.view(session, name, version)


def _view(session: Session, name: AdapterName, version: VersionRow) -> VersionView:
    """With the boxes that still have it: withdrawing takes nothing out of an engine by itself."""
    found = catalog.view(session, name, version)
    return found.model_copy(update={"served_on": fleet.live_on(session, name, version.digest)})


def _changed(session: Session, actor: Actor, name: AdapterName, version: VersionRow, action: str, reason: str) -> None:
    version.recorded_at = None
    session.add(version)
    audit.append(session, actor, action, f"{name}@{version.number}", {"digest": version.digest, "reason": reason})
    session.flush()
