"""Admission: may this push come in? Names, the namespace's quotas, and how often it may push.

Invariants
- A quota counts each version in full, whoever else holds the same bytes: nobody learns from it what others have.
- It is asked before any byte is sent, and again under the namespace's lock before the rows: it is never exceeded.
- A namespace without limits costs nothing at the commit but the one look at its row.

Example
    >>> admission.foresee(session, actor, name, manifest)
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import bindparam, func
from sqlmodel import Session, col, select

from registry.errors import TooLarge
from registry.manifest import Manifest
from registry.names import AdapterName
from registry.server.access import reserved_names
from registry.server.access.signin import limited
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.models.content import AdapterRow, NamespaceRow, PushRow, VersionRow

HOUR = timedelta(hours=1)


_NAMESPACE = select(NamespaceRow).where(col(NamespaceRow.name) == bindparam("name"))
"""Put together once: every push asks this."""


def foresee(session: Session, actor: Actor, name: AdapterName, manifest: Manifest) -> None:
    """Before the plan of a new push. `Conflict` (NAME_…), `TooLarge` (QUOTA_EXCEEDED), `Unavailable` (RATE_LIMITED)."""
    reserved_names.foresee(session, actor, name)
    row = session.exec(_NAMESPACE, params={"name": name.namespace}).first()
    if row is not None:
        _refuse_excess(session, row, name, manifest)
        _refuse_haste(session, row)


def confirm(session: Session, name: AdapterName, manifest: Manifest) -> None:
    """Before the rows of a new version. Pushes into a namespace with a quota wait for each other here."""
    row = session.exec(_NAMESPACE, params={"name": name.namespace}).first()
    if row is not None and not (row.quota_bytes is None and row.quota_versions is None):
        session.exec(select(NamespaceRow.name).where(col(NamespaceRow.name) == row.name).with_for_update()).one()
        _refuse_excess(session, row, name, manifest)


def receive(session: Session, name: AdapterName, adapter_id: int) -> None:
    """Before an adapter comes into another namespace: its versions must have room there. `TooLarge`, as for a push."""
    row = session.get(NamespaceRow, name.namespace)
    if row is None or (row.quota_bytes is None and row.quota_versions is None):
        return
    session.exec(select(NamespaceRow.name).where(col(NamespaceRow.name) == row.name).with_for_update()).one()
    mine = select(func.coalesce(func.sum(VersionRow.size_bytes), 0), func.count(col(VersionRow.id)))
    size_bytes, versions = session.exec(mine.where(VersionRow.adapter_id == adapter_id)).one()
    over = _over(session, row, int(size_bytes), versions, "adapter")
    if over:
        raise _full(row, over)


def used(session: Session, namespaces: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Namespace → its bytes and its versions. Every one of `namespaces` is there."""
    statement = (
        select(AdapterRow.namespace, func.sum(VersionRow.size_bytes), func.count(col(VersionRow.id)))
        .join(VersionRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
        .where(col(AdapterRow.namespace).in_(namespaces))
        .group_by(AdapterRow.namespace)
    )
    found = {namespace: (int(size_bytes), versions) for namespace, size_bytes, versions in session.exec(statement)}
    return {namespace: found.get(namespace, (0, 0)) for namespace in namespaces}


def _refuse_excess(session: Session, row: NamespaceRow, name: AdapterName, manifest: Manifest) -> None:
    if row.quota_bytes is None and row.quota_versions is None:
        return
    over = _over(session, row, manifest.size_bytes, 1, "version")
    if over and not _is_there(session, name, manifest):
        raise _full(row, over)


def _over(session: Session, row: NamespaceRow, size_bytes: int, versions: int, what: str) -> str:
    """How a namespace would exceed its quota with so much more; empty when it would not."""
    used_bytes, used_versions = used(session, [row.name])[row.name]
    if row.quota_bytes is not None and used_bytes + size_bytes > row.quota_bytes:
        return f"{used_bytes} of {row.quota_bytes} bytes are used, and this {what} has {size_bytes}"
    if row.quota_versions is not None and used_versions + versions > row.quota_versions:
        return f"{used_versions} of {row.quota_versions} versions are used, and this {what} is {versions} more"
    return ""


def _full(row: NamespaceRow, over: str) -> TooLarge:
    return TooLarge(
        "QUOTA_EXCEEDED",
        f"the quota of namespace '{row.name}' is full: {over}",
        next_step="delete an adapter that nobody needs, or ask an administrator for a larger quota",
    )


def _is_there(session: Session, name: AdapterName, manifest: Manifest) -> bool:
    """The same version again takes no room."""
    statement = (
        select(VersionRow.id)
        .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
        .where(AdapterRow.namespace == name.namespace, AdapterRow.name == name.name)
        .where(VersionRow.digest == manifest.digest)
    )
    return session.exec(statement).first() is not None


def _refuse_haste(session: Session, row: NamespaceRow) -> None:
    if row.pushes_per_hour is None:
        return
    recent = select(func.count(), func.min(PushRow.created_at)).where(
        col(PushRow.namespace) == row.name, col(PushRow.created_at) > db.now() - HOUR
    )
    count, oldest = session.exec(recent).one()
    if count >= row.pushes_per_hour:
        wait = (oldest + HOUR - db.now()).total_seconds() if oldest else HOUR.total_seconds()
        raise limited(f"pushes into namespace '{row.name}'", row.pushes_per_hour, max(0.0, wait), "hour")
