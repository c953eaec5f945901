"""Changes the description, tags and links of an adapter or a version.

All who may push may change them. Each change that changes something has one event, with the new values and with what
was removed, so the audit log keeps their history. A version in quarantine keeps its metadata as it is.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete
from sqlmodel import Session, col, select

from registry.api.catalog import TAGS_LIMIT, MetadataChange, VersionView
from registry.errors import TooLarge
from registry.events import EventType
from registry.names import AdapterName, Selector
from registry.roles import Scope
from registry.server import audit
from registry.server.actors import Actor
from registry.server.catalog import availability, versions
from registry.server.database import db
from registry.server.database.models import DESCRIPTION, LINK, TAG, AdapterMetadataRow, VersionMetadataRow

_Key = tuple[str, str]


def change_adapter(session: Session, actor: Actor, name: AdapterName, change: MetadataChange) -> None:
    """Change the metadata of an adapter. `NotFound`, `Denied`, `TooLarge` (SIZE_INVALID)."""
    actor.require(Scope.PUSH, name)
    adapter = versions.find_adapter(session, actor, name, lock=True)
    detail = _change(session, actor, AdapterMetadataRow, {"adapter_id": adapter.id}, change)
    if detail:
        audit.append(session, actor, EventType.ADAPTER_DESCRIBE, str(name), detail)
        session.flush()


def change_version(
    session: Session, actor: Actor, name: AdapterName, selector: Selector, change: MetadataChange
) -> VersionView:
    """Change the metadata of a version. `Refused` (QUARANTINED), else as `change_adapter`."""
    actor.require(Scope.PUSH, name)
    versions.find_adapter(session, actor, name, lock=True)
    version = versions.find(session, actor, name, selector)
    if version.quarantined_at is not None:
        raise availability.quarantined_error(name, version)
    detail = _change(session, actor, VersionMetadataRow, {"version_id": version.id}, change)
    if detail:
        subject = f"{name}@{version.number}"
        audit.append(session, actor, EventType.VERSION_DESCRIBE, subject, {"digest": version.digest, **detail})
        session.flush()
    return versions.build_view(session, name, version)


def _change(
    session: Session, actor: Actor, table: Any, owner: dict[str, Any], change: MetadataChange
) -> dict[str, Any]:
    """Write the rows that differ. Returns the detail of the event, empty if nothing differs."""
    own = [col(getattr(table, column)) == value for column, value in owner.items()]
    before: dict[_Key, str] = {(row.kind, row.key): row.value for row in session.exec(select(table).where(*own)).all()}
    after = _apply(before, change)
    for kind, noun in ((TAG, "tags"), (LINK, "links")):
        count = sum(key[0] == kind for key in after)
        if count > TAGS_LIMIT:
            raise TooLarge("SIZE_INVALID", f"{noun}: {count} are over the limit of {TAGS_LIMIT}")
    written = {key: value for key, value in after.items() if before.get(key) != value}
    removed = sorted(before.keys() - after.keys())
    for kind, key in [*written, *removed]:
        session.connection().execute(delete(table).where(*own, table.kind == kind, table.key == key))
    common = {**owner, "set_at": db.now(), "set_by": actor.identity}
    db.bulk_insert(
        session, [table(**common, kind=kind, key=key, value=value) for (kind, key), value in written.items()]
    )
    detail: dict[str, Any] = {
        f"{kind}s": {key: value for (k, key), value in written.items() if k == kind} for kind in (TAG, LINK)
    }
    detail["description"] = written.get((DESCRIPTION, ""), "")
    detail["removed"] = [f"{kind} {key}".strip() for kind, key in removed]
    return {field: value for field, value in detail.items() if value}


def _apply(before: dict[_Key, str], change: MetadataChange) -> dict[_Key, str]:
    requested: dict[_Key, str | None] = {(TAG, key): value for key, value in change.tags.items()}
    requested |= {(LINK, key): value for key, value in change.links.items()}
    if change.description is not None:
        requested[DESCRIPTION, ""] = change.description.strip() or None
    after = {**before, **{key: value for key, value in requested.items() if value is not None}}
    return {key: value for key, value in after.items() if key not in requested or requested[key] is not None}
