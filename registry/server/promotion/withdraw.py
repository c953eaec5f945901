"""Withdraw versions: yank and unyank, quarantine and end a quarantine.

- A change locks the row. Row and event are one transaction; its ref is written again after it.
- `quarantine` of a row grows with each quarantine, and when one or a yank ends, so a ref that
  was written meanwhile is written again, and a cached look-up sees that the version changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session

from registry.api.catalog import VersionView
from registry.events import EventType
from registry.names import AdapterName, Selector
from registry.roles import Scope
from registry.server import audit
from registry.server.access import epoch
from registry.server.actors import Actor
from registry.server.catalog import availability, versions
from registry.server.catalog.search import text_index
from registry.server.database import db
from registry.server.database.models import VersionRow
from registry.server.promotion import moves
from registry.server.serving import reports


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """How a version is withdrawn: the column that says since when, the one that says why, and its two events."""

    since: str
    reason: str
    begins: EventType
    ends: EventType


@dataclass(frozen=True, slots=True)
class StateChange:
    """New values of a version's row, and the event that says why."""

    event_type: EventType
    reason: str
    values: Mapping[str, Any]


QUARANTINED = Withdrawal(
    "quarantined_at", "quarantine_reason", EventType.VERSION_QUARANTINE, EventType.VERSION_UNQUARANTINE
)
YANKED = Withdrawal("yanked_at", "yank_reason", EventType.VERSION_YANK, EventType.VERSION_UNYANK)
DELETED = Withdrawal("deleted_at", "delete_reason", EventType.VERSION_DELETE, EventType.VERSION_UNDELETE)
_WITHHELD = frozenset({EventType.VERSION_QUARANTINE, EventType.VERSION_DELETE})
"""Replicas must stop serving these versions at once, from memory as well."""
CHANGES = {
    "yank": (YANKED, True, Scope.PROMOTE),
    "unyank": (YANKED, False, Scope.PROMOTE),
    "quarantine": (QUARANTINED, True, Scope.PROMOTE),
    "unquarantine": (QUARANTINED, False, Scope.ADMIN),
}
"""Name of a change → the withdrawal, whether it begins, and the scope that the change needs."""


def change_state(
    session: Session, actor: Actor, name: AdapterName, selector: Selector, change: str, reason: str
) -> VersionView:
    """Withdraw a version, or end that: then it is what it was before. A second time changes nothing.

    `NotFound`, `Denied`; `Refused` (QUARANTINED) for a yank, or the end of one, during a quarantine.
    """
    version = lock(session, actor, CHANGES[change][2], name, selector)
    decision = decide(name, version, change, reason)
    if decision is not None:
        write(session, actor, name, version, decision)
    begins = CHANGES[change][1]
    return view_with_nodes(session, name, version) if begins else versions.build_view(session, name, version)


def decide(name: AdapterName, version: VersionRow, change: str, reason: str) -> StateChange | None:
    """What a change of `CHANGES` does to a version; None if the version is in that state. Errors of `change_state`."""
    withdrawal, begins, _ = CHANGES[change]
    if withdrawal is YANKED and version.quarantined_at is not None:
        raise availability.quarantined_error(name, version)
    if (getattr(version, withdrawal.since) is not None) == begins:
        return None
    values: dict[str, Any] = {
        withdrawal.since: db.now() if begins else None,
        withdrawal.reason: reason if begins else "",
    }
    if not (begins and withdrawal is YANKED):
        values["quarantine"] = version.quarantine + 1
    return StateChange(withdrawal.begins if begins else withdrawal.ends, reason, values)


def view_with_nodes(session: Session, name: AdapterName, version: VersionRow) -> VersionView:
    """The view with the nodes that still serve the version: withdrawing removes nothing from an engine."""
    view = versions.build_view(session, name, version)
    return view.model_copy(update={"served_on": reports.find_serving_nodes(session, name, version.digest)})


def lock(
    session: Session, actor: Actor, scope: Scope, name: AdapterName, selector: Selector, *,
    include_deleted: bool = False,
) -> VersionRow:  # fmt: skip
    """Check the right, lock the adapter, whose `main` may move, and return the version, locked and as it is now.

    Without the lock, whoever writes refs now could miss the change: setting an empty `recorded_at` to empty again
    writes nothing.
    """
    actor.require(scope, name)
    versions.find_adapter(session, actor, name, lock=True)
    version = versions.find(session, actor, name, selector, include_deleted=include_deleted)
    session.refresh(version, with_for_update=True)
    return version


def write(session: Session, actor: Actor, name: AdapterName, version: VersionRow, change: StateChange) -> None:
    """Change the row and write the event. `main` moves to the newest version that is available then."""
    session.add(version.sqlmodel_update({**change.values, "recorded_at": None}))
    subject = f"{name}@{version.number}"
    audit.append(session, actor, change.event_type, subject, {"digest": version.digest, "reason": change.reason})
    if change.event_type in _WITHHELD:
        epoch.advance(session)
    session.flush()
    moves.follow_newest(session, actor, name, version.adapter_id, change.event_type.message.format(object=subject))
    text_index.forget_version(session, version)
