"""Removal and transfer: an adapter ends or changes hands, a namespace ends. What they were called nobody is again.

Invariants
- Rows, tombstone and event are one transaction. Bytes stay until `gc` finds that nothing needs them.
- With the name go the rights that hung on it: trusted publishers, and roles in a namespace that ends. What people of
  one namespace approved is no approval in another.
- A transfer is told under both names, to whoever may read there; the new one's event has all names that there were.
- The tombstone is recorded beside the blobs after the commit, and the versions' records go then (`forget`);
  `reindex` passes over what is left of them.
- A push that is under way finds its name taken for ever, and leaves nothing.
"""

from __future__ import annotations

import contextlib
from typing import Any

from sqlalchemy import ColumnElement, Engine, Table, update
from sqlalchemy import delete as delete_rows
from sqlalchemy import select as plain_select
from sqlmodel import Session, SQLModel, col, select

from registry.api.access import DeleteResult
from registry.errors import Conflict, Unavailable
from registry.events import EventType
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import audit
from registry.server.access import epoch, namespaces, publishers, quotas, reserved_names
from registry.server.actors import Actor
from registry.server.catalog import metadata_backup
from registry.server.catalog import versions as catalog
from registry.server.database import db
from registry.server.database.models import AdapterRow, ApprovalRow, JobRow, PushRow, VersionRow
from registry.server.serving import reports
from registry.server.storage.blobs import BlobStore

RECORDS_LIMIT = 100
"""Records that one removal writes: its own tombstone, and some that were left."""
_ADAPTER: Table = AdapterRow.__table__  # type: ignore[attr-defined]


def delete_adapter(session: Session, actor: Actor, name: AdapterName) -> DeleteResult:
    """End an adapter with all its versions. `NotFound`, `Denied`."""
    actor.require(Scope.ADMIN, name)
    adapter = catalog.find_adapter(session, actor, name, lock=True)
    mine = select(VersionRow.id, VersionRow.digest).where(VersionRow.adapter_id == adapter.id)
    # Locked, so that nothing is hung on a version after what hangs on it was deleted.
    versions = session.exec(mine.order_by(col(VersionRow.id)).with_for_update()).all()
    _delete_with_all_below(session, _ADAPTER, _ADAPTER.c.id == adapter.id)
    session.expunge(adapter)
    _end_name(session, name)
    detail = {"versions": len(versions), "digests": [digest for _, digest in versions[:100]]}
    audit.append(session, actor, EventType.ADAPTER_DELETE, str(name), detail)
    return DeleteResult(name=str(name), versions=len(versions), served_on=reports.find_serving_nodes(session, name))


def rename(session: Session, actor: Actor, name: AdapterName, to: AdapterName) -> None:
    """Give an adapter another name, in the same namespace or in another one that the actor owns, too."""
    actor.require(Scope.ADMIN, name)
    adapter = catalog.find_adapter(session, actor, name, lock=True)
    if to == name:
        raise Conflict("NAME_TAKEN", f"'{name}' has this name already")
    actor.require_in(Scope.ADMIN, to.namespace)
    _end_name(session, name)
    if session.exec(select(AdapterRow.id).where(catalog.named(to))).first() is not None:
        raise Conflict("NAME_TAKEN", f"there is an adapter '{to}' already")
    reserved_names.reserve_adapter(session, actor, to)
    if to.namespace != name.namespace:
        quotas.check_before_transfer(session, to, adapter.id or 0)
    adapter.namespace, adapter.name = to.namespace, to.name
    session.add(adapter)
    mine = col(VersionRow.adapter_id) == adapter.id
    if to.namespace != name.namespace:
        theirs = col(ApprovalRow.version_id).in_(select(VersionRow.id).where(mine))
        session.connection().execute(delete_rows(ApprovalRow).where(theirs))
    session.connection().execute(update(VersionRow).where(mine).values(recorded_at=None))
    _rename_jobs(session, adapter, to)
    earlier = audit.read_former_names(session, name)
    audit.append(session, actor, EventType.ADAPTER_RENAME, str(name), {"to": str(to)})
    audit.append(session, actor, EventType.ADAPTER_ARRIVE, str(to), {"from": str(name), "names": [*earlier, str(name)]})
    session.flush()


def delete_namespace(session: Session, actor: Actor, namespace: str) -> DeleteResult:
    """End a namespace that holds no adapter. `Conflict` (NAMESPACE_IN_USE), `NotFound`, `Denied`."""
    actor.require_in(Scope.ADMIN, namespace)
    namespaces.show(session, actor, namespace)
    if session.exec(select(AdapterRow.id).where(col(AdapterRow.namespace) == namespace).limit(1)).first() is not None:
        raise Conflict(
            "NAMESPACE_IN_USE",
            f"namespace '{namespace}' holds adapters",
            next_step="delete them or give them another name first",
        )
    namespaces.delete_namespace(session, actor, namespace)
    return DeleteResult(name=namespace)


def delete_records(engine: Engine, blobs: BlobStore, name: AdapterName) -> None:
    """Record the tombstone of an adapter that is gone, then delete the records of its versions.

    Not needed for truth: `reindex` passes over versions whose name has ended.
    """
    record_tombstones(engine, blobs)
    with contextlib.suppress(Unavailable):
        for key in [stat.key for stat in blobs.list(metadata_backup.adapter_prefix(name.namespace, name.name))]:
            blobs.delete(key)


def record_tombstones(engine: Engine, blobs: BlobStore) -> None:
    """Record tombstones beside the blobs. What is left when the store is away, `gc` records."""
    with contextlib.suppress(Unavailable):
        metadata_backup.write_missing(engine, blobs, limit=RECORDS_LIMIT)


def _end_name(session: Session, name: AdapterName) -> None:
    reserved_names.add_tombstone(session, name.namespace, name.name)
    publishers.remove_all(session, name)
    mine = (col(PushRow.namespace) == name.namespace, col(PushRow.name) == name.name)
    session.connection().execute(update(PushRow).where(*mine).values(expires_at=db.now()))
    epoch.advance(session)


def _delete_with_all_below(session: Session, table: Table, which: ColumnElement[bool]) -> None:
    """These rows and those of every table that point at them, whichever tables there are."""
    for other in SQLModel.metadata.sorted_tables:
        for key in other.foreign_keys:
            if key.column.table is table:
                _delete_with_all_below(session, other, key.parent.in_(plain_select(key.column).where(which)))
    session.connection().execute(delete_rows(table).where(which))


def _rename_jobs(session: Session, adapter: AdapterRow, to: AdapterName) -> None:
    mine = select(JobRow).join(VersionRow, col(VersionRow.id) == col(JobRow.version_id))
    for job in session.exec(mine.where(col(VersionRow.adapter_id) == adapter.id)).all():
        values: dict[str, Any] = {"namespace": to.namespace, "subject": f"{to}@{job.subject.rpartition('@')[2]}"}
        session.add(job.sqlmodel_update(values))
