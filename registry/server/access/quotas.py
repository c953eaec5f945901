"""Quotas: how much a namespace may hold and how often it may receive a push.

A quota counts each version in full, even if another namespace holds the same bytes, so that nobody learns from it what
others hold. Before a push sends bytes, those that other open pushes may have staged count, too. A push is checked again
under the namespace's lock before its rows are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import bindparam, func, literal
from sqlmodel import Session, col, select

from registry.errors import TooLarge, Unavailable
from registry.manifest import Manifest
from registry.names import AdapterName
from registry.server.access import reserved_names
from registry.server.access.rate_limits import rate_limited
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.models import AdapterRow, NamespaceRow, PushBlobRow, PushRow, VersionRow
from registry.server.storage.references import PushState

HOUR = timedelta(hours=1)
PUSHES_OF_TOKEN_LIMIT = 500
PUSHES_OF_NAMESPACE_LIMIT = 2000
# Built once: every push executes them.
_SELECT_NAMESPACE = select(NamespaceRow).where(col(NamespaceRow.name) == bindparam("name"))
_IS_OPEN = (col(PushRow.state) == PushState.OPEN, col(PushRow.expires_at) > bindparam("now"))
_COUNT_OPEN = select(func.count(col(PushRow.id))).where(*_IS_OPEN)
_SELECT_WITH_OPEN_PUSHES = (
    select(
        NamespaceRow,
        _COUNT_OPEN.where(col(PushRow.token_id) == bindparam("token_id")).scalar_subquery(),
        _COUNT_OPEN.where(col(PushRow.namespace) == bindparam("name")).scalar_subquery(),
    )
    .select_from(select(literal(1).label("one")).subquery())
    .outerjoin(NamespaceRow, col(NamespaceRow.name) == bindparam("name"))
)
_SUM_STAGED = (
    select(func.coalesce(func.sum(PushBlobRow.size_bytes), 0))
    .join(PushRow, col(PushRow.id) == col(PushBlobRow.push_id))
    .where(*_IS_OPEN, col(PushRow.namespace) == bindparam("name"), col(PushBlobRow.staging_key) != "")
)


def check_before_upload(session: Session, actor: Actor, name: AdapterName, manifest: Manifest) -> None:
    """Check the plan of a push. `Conflict` (NAME_…), `TooLarge` (QUOTA_EXCEEDED), `Unavailable` (RATE_LIMITED).

    Call it in the transaction that writes the push: it locks a namespace that has a quota.
    """
    reserved_names.check_available(session, actor, name)
    params = {"name": name.namespace, "token_id": actor.token_id, "now": db.now()}
    row, of_token, of_namespace = session.exec(_SELECT_WITH_OPEN_PUSHES, params=params).one()
    _check_open_pushes("this token", of_token, PUSHES_OF_TOKEN_LIMIT)
    _check_open_pushes(f"namespace '{name.namespace}'", of_namespace, PUSHES_OF_NAMESPACE_LIMIT)
    if row is not None:
        if _has_quota(row):
            _lock(session, row)
            staged_bytes = int(session.exec(_SUM_STAGED, params={"name": row.name, "now": params["now"]}).one())
            _require_space(
                session, row, manifest.size_bytes, 1, "version", staged_bytes, unless_exists=(name, manifest)
            )
        _check_push_rate(session, row)


def _check_open_pushes(owner: str, count: int, limit: int) -> None:
    if count >= limit:
        raise Unavailable(
            "RATE_LIMITED",
            f"{owner} has {count} open pushes, which is the limit",
            next_step="commit them, or wait until they expire",
            retry_after_seconds=int(HOUR.total_seconds()),
        )


def check_before_commit(session: Session, name: AdapterName, manifest: Manifest) -> None:
    """Check a new version before its rows are written. Locks a namespace that has a quota."""
    row = session.exec(_SELECT_NAMESPACE, params={"name": name.namespace}).first()
    if row is not None and _has_quota(row):
        _lock(session, row)
        _require_space(session, row, manifest.size_bytes, 1, "version")


def check_before_transfer(session: Session, name: AdapterName, adapter_id: int) -> None:
    """Check that the versions of an adapter fit into the namespace it moves to. `TooLarge` as for a push."""
    row = session.get(NamespaceRow, name.namespace)
    if row is not None and _has_quota(row):
        _lock(session, row)
        totals = select(func.coalesce(func.sum(VersionRow.size_bytes), 0), func.count(col(VersionRow.id)))
        size_bytes, versions = session.exec(totals.where(VersionRow.adapter_id == adapter_id)).one()
        _require_space(session, row, int(size_bytes), versions, "adapter")


def read_usage(session: Session, namespaces: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the bytes and the number of versions of each of these namespaces."""
    statement = (
        select(AdapterRow.namespace, func.sum(VersionRow.size_bytes), func.count(col(VersionRow.id)))
        .join(VersionRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
        .where(col(AdapterRow.namespace).in_(namespaces))
        .group_by(AdapterRow.namespace)
    )
    usage = {namespace: (int(size_bytes), versions) for namespace, size_bytes, versions in session.exec(statement)}
    return {namespace: usage.get(namespace, (0, 0)) for namespace in namespaces}


def _has_quota(row: NamespaceRow) -> bool:
    return row.quota_bytes is not None or row.quota_versions is not None


def _lock(session: Session, row: NamespaceRow) -> None:
    session.exec(select(NamespaceRow.name).where(col(NamespaceRow.name) == row.name).with_for_update()).one()


def _require_space(
    session: Session, row: NamespaceRow, size_bytes: int, versions: int, what: str, staged_bytes: int = 0, *,
    unless_exists: tuple[AdapterName, Manifest] | None = None,
) -> None:  # fmt: skip
    """Raise `TooLarge` (QUOTA_EXCEEDED) if the namespace would exceed its quota with this much more.

    A version that exists already (`unless_exists`) needs no space.
    """
    used_bytes, used_versions = read_usage(session, [row.name])[row.name]
    if row.quota_bytes is not None and used_bytes + staged_bytes + size_bytes > row.quota_bytes:
        staged = f", open pushes hold {staged_bytes}" if staged_bytes else ""
        excess = f"{used_bytes} of {row.quota_bytes} bytes are used{staged}, and this {what} has {size_bytes}"
    elif row.quota_versions is not None and used_versions + versions > row.quota_versions:
        excess = f"{used_versions} of {row.quota_versions} versions are used, and this {what} is {versions} more"
    else:
        return
    if unless_exists is not None and _version_exists(session, *unless_exists):
        return
    raise TooLarge(
        "QUOTA_EXCEEDED",
        f"the quota of namespace '{row.name}' is full: {excess}",
        next_step="delete unused adapters, or ask an administrator for a larger quota",
    )


def _version_exists(session: Session, name: AdapterName, manifest: Manifest) -> bool:
    versions = select(VersionRow.id).join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    same_name = (AdapterRow.namespace == name.namespace, AdapterRow.name == name.name)
    return session.exec(versions.where(*same_name, VersionRow.digest == manifest.digest)).first() is not None


def _check_push_rate(session: Session, row: NamespaceRow) -> None:
    if row.pushes_per_hour is None:
        return
    recent = select(func.count(), func.min(PushRow.created_at)).where(
        col(PushRow.namespace) == row.name, col(PushRow.created_at) > db.now() - HOUR
    )
    count, oldest = session.exec(recent).one()
    if count >= row.pushes_per_hour:
        wait = (oldest + HOUR - db.now()).total_seconds() if oldest else HOUR.total_seconds()
        raise rate_limited(f"pushes into namespace '{row.name}'", row.pushes_per_hour, max(0.0, wait), "hour")
