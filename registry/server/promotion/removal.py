"""Delete a namespace, rename or move an adapter. Nothing but the same adapter gets a former name again.

- Rows, tombstone and event are one transaction. Blobs stay until `gc` finds that nothing refers to them.
- The rights bound to the name end with it: trusted publishers, the roles of a deleted namespace, and approvals when an
  adapter moves to another namespace, whose gates then count before its own. A push in progress finds its name reserved
  and fails.
- A rename has an event under both names. The new name's event lists all former names, and readers are led from those
  to the new one.
- The refs of a name that has ended are deleted after the commit. `reindex` skips what is left of them.
"""

import contextlib
from typing import Any, cast

from sqlalchemy import Engine, update
from sqlalchemy import delete as delete_rows
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from registry.api.catalog import DeleteResult
from registry.errors import Conflict, Refused, Unavailable
from registry.evaluation.verdicts import Check, Outcome
from registry.events import EventType
from registry.findings import Finding
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import audit
from registry.server.access import namespaces, quotas, reserved_names
from registry.server.actors import Actor
from registry.server.catalog import base_rows, refs, verdicts, versions
from registry.server.catalog.search import text_index
from registry.server.database.models import AdapterRow, BaseRow, VerdictRow, VersionRow
from registry.server.database.models.jobs import JobRow
from registry.server.database.models.owner_rules import ApprovalRow
from registry.server.database.models.sign_in import PublisherRow
from registry.server.promotion import adapter_deletion, gates
from registry.server.storage.blobs import BlobStore

REFS_LIMIT = 100
"""Refs that one rename writes: its own, and some that an outage left."""


def rename(session: Session, actor: Actor, name: AdapterName, to: AdapterName, *, reason: str = "") -> None:
    """Give an adapter another name, in the same namespace or in another one that there is and the actor owns."""
    actor.require(Scope.ADMIN, name)
    adapter = versions.find_adapter(session, actor, name, lock=True)
    if to == name:
        raise Conflict("NAME_TAKEN", f"'{name}' has this name already")
    actor.require_in(Scope.ADMIN, to.namespace)
    if to.namespace != name.namespace:
        namespaces.show(session, actor, to.namespace)  # a typo would create it
    adapter_deletion.end_name(session, name)
    session.connection().execute(delete_rows(PublisherRow).filter_by(namespace=name.namespace, name=name.name))
    if session.exec(select(AdapterRow.id).where(versions.has_name(to))).first() is not None:
        raise Conflict("NAME_TAKEN", f"there is an adapter '{to}' already")
    former_names = audit.read_former_names(session, name)
    if str(to) in former_names:
        reserved_names.remove_tombstone(session, to.namespace, to.name)
    reserved_names.reserve_adapter(session, actor, to)
    if to.namespace != name.namespace:
        quotas.check_before_transfer(session, to, adapter.id or 0)
        _refuse_incompatible(session, adapter.id, name, to)
    adapter.namespace, adapter.name = to.namespace, to.name
    session.add(adapter)
    session.flush()
    text_index.update_names(session, [adapter.id or 0])
    own = col(VersionRow.adapter_id) == adapter.id
    if to.namespace != name.namespace:
        approved = col(ApprovalRow.version_id).in_(select(VersionRow.id).where(own))
        session.connection().execute(delete_rows(ApprovalRow).where(approved))
        gates.remove_overridden(session, actor, to, adapter.id)
    session.connection().execute(update(VersionRow).where(own).values(recorded_at=None))
    _rename_jobs(session, adapter, to)
    names = list(dict.fromkeys([*former_names, str(name)]))
    audit.append(session, actor, EventType.ADAPTER_RENAME, str(name), {"to": str(to), "reason": reason})
    detail = {"from": str(name), "names": names, "reason": reason}
    audit.append(session, actor, EventType.ADAPTER_RENAME_FROM, str(to), detail)
    session.flush()


def _refuse_incompatible(session: Session, adapter_id: int | None, name: AdapterName, to: AdapterName) -> None:
    """`Refused` (INCOMPATIBLE) if the new namespace does not store a version: its base, or that it does not fit it."""
    if not namespaces.find_with_rule(session, "unregistered_bases", [to.namespace]):
        unregistered = (
            select(VersionRow.number, BaseRow.name)
            .join(BaseRow, col(BaseRow.id) == col(VersionRow.base_id))
            .where(VersionRow.adapter_id == adapter_id, ~base_rows.REGISTERED)
        )
        for number, base in session.exec(unregistered.order_by(col(VersionRow.number).desc()).limit(1)):
            raise Refused(
                "INCOMPATIBLE", f"the base '{base}' of '{name}@{number}' is not registered",
                next_step=f"register it (`adapter base add {base} DIR`), or let an owner of '{to.namespace}' allow it",
            )  # fmt: skip
    if not namespaces.find_with_rule(session, "strict", [to.namespace]):
        return
    failing = (
        select(VersionRow.number, VerdictRow.findings)
        .join(VersionRow, verdicts.is_current(Check.COMPAT))
        .where(VersionRow.adapter_id == adapter_id, VerdictRow.outcome == Outcome.FAIL)
    )
    for number, stored in session.exec(failing.order_by(col(VersionRow.number).desc()).limit(1)):
        findings = [finding for finding in map(Finding.from_dict, stored) if finding and finding.severity == "error"]
        raise Refused(
            "INCOMPATIBLE", f"'{name}@{number}' does not fit its base: {findings[0].to_text()}", findings=findings,
            next_step=f"namespace '{to.namespace}' is strict: use another one, or push the other versions there",
        )  # fmt: skip


def delete_namespace(session: Session, actor: Actor, namespace: str) -> DeleteResult:
    """Delete a namespace that holds no adapter. `Conflict` (NAMESPACE_IN_USE), `NotFound`, `Denied`."""
    actor.require_in(Scope.ADMIN, namespace)
    namespaces.show(session, actor, namespace)
    holds = select(VersionRow.id).join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    holds = holds.where(col(AdapterRow.namespace) == namespace, col(VersionRow.purged_at).is_(None))
    if session.exec(holds.limit(1)).first() is not None:
        next_step = "delete them, or rename them into another namespace; deleted ones can be restored for a while"
        raise Conflict("NAMESPACE_IN_USE", f"namespace '{namespace}' holds adapters", next_step=next_step)
    namespaces.delete_namespace(session, actor, namespace)
    return DeleteResult(name=namespace)


def delete_refs(engine: Engine, blobs: BlobStore, name: AdapterName) -> None:
    """Write the refs of a renamed adapter under its new name, then delete those under the old one."""
    with contextlib.suppress(Unavailable):
        refs.write_missing(engine, blobs, limit=REFS_LIMIT)
    refs.delete_adapter(blobs, name)


def _rename_jobs(session: Session, adapter: AdapterRow, to: AdapterName) -> None:
    own = select(JobRow).join(VersionRow, col(VersionRow.id) == col(JobRow.version_id))
    own = own.where(col(VersionRow.adapter_id) == adapter.id).options(defer(cast(Any, JobRow.result)))  # may be large
    for job in session.exec(own).all():
        values: dict[str, Any] = {"namespace": to.namespace, "subject": f"{to}@{job.subject.rpartition('@')[2]}"}
        session.add(job.sqlmodel_update(values))
