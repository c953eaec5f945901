"""Quotas: how much a namespace may hold and how often it may receive a push.

A quota counts each version in full, even if another namespace holds the same bytes, so that no one learns from it what
others hold. Before a push sends bytes, those that other open pushes may have staged count, too. A push is checked again
under the namespace's lock before its rows are written. Reports of the namespace's own workers are checked as they come.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, func, or_
from sqlmodel import Session, col, select

from registry.errors import RegistryError, TooLarge, Unavailable
from registry.names import AdapterName
from registry.server.access import reserved_names
from registry.server.access.rate_limits import rate_limited
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import AdapterRow, BlobRow, VerdictRow, VersionRow
from registry.server.database.models.namespaces import NamespaceRow, NamespaceUsageRow
from registry.server.database.models.pushes import PushBlobRow, PushRow
from registry.server.storage.states import PushState
from registry.versions.manifest import Manifest

HOUR = timedelta(hours=1)
PUSHES_OF_TOKEN_LIMIT = 500
PUSHES_OF_NAMESPACE_LIMIT = 2000
# Built once: every push executes them.
_SELECT_NAMESPACES = select(NamespaceRow).where(any_of(col(NamespaceRow.name), parameter="names"))
_IS_OPEN = (col(PushRow.state) == PushState.OPEN, col(PushRow.expires_at) > bindparam("now"))
_COUNT_OPEN = (
    select(col(PushRow.namespace), col(PushRow.token_id), func.count(col(PushRow.id)))
    .where(*_IS_OPEN)
    .where(or_(col(PushRow.token_id) == bindparam("token_id"), any_of(col(PushRow.namespace), parameter="names")))
    .group_by(col(PushRow.namespace), col(PushRow.token_id))
)
_SUM_STAGED = (
    select(col(PushRow.namespace), func.sum(PushBlobRow.size_bytes))
    .join(PushBlobRow, col(PushRow.id) == col(PushBlobRow.push_id))
    .where(*_IS_OPEN, any_of(col(PushRow.namespace), parameter="names"), col(PushBlobRow.is_requested))
    .group_by(col(PushRow.namespace))
)
_IS_REPEATED = (
    select(col(VersionRow.id))
    .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    .where(col(AdapterRow.namespace) == col(PushRow.namespace), col(AdapterRow.name) == col(PushRow.name))
    .where(col(VersionRow.digest) == col(PushRow.manifest_digest), VersionRow.created_at < PushRow.created_at)
    .exists()
)
_RECENT = (
    select(col(PushRow.namespace), func.count(), func.min(PushRow.created_at))
    .where(any_of(col(PushRow.namespace), parameter="names"), col(PushRow.created_at) > bindparam("since"))
    .where(PushRow.manifest_digest != "")  # what a Hub client stages is counted by its versions
    .where(~_IS_REPEATED)
    .group_by(col(PushRow.namespace))
)
_LOCK = (
    select(NamespaceRow.name)
    .where(any_of(col(NamespaceRow.name), parameter="names"))
    .order_by(col(NamespaceRow.name))
    .with_for_update()
)


@dataclass
class _Usage:
    """What a namespace with a quota holds, and what the pushes of this request add."""

    used_bytes: int
    used_versions: int
    staged_bytes: int = 0
    planned_versions: int = 0
    """What the pushes before in this request add, if the namespace does not have them."""


@dataclass(frozen=True, slots=True)
class NewPush:
    """A push to be checked: `staged_bytes` are those that it will send."""

    name: AdapterName
    manifest: Manifest
    staged_bytes: int


def check_before_upload(session: Session, actor: Actor, pushes: Sequence[NewPush]) -> dict[int, RegistryError]:
    """Check new pushes; return the errors by position: `Conflict` (NAME_…), QUOTA_EXCEEDED, RATE_LIMITED.

    Call it in the transaction that writes the pushes: it locks namespaces that have a quota. Each push counts the ones
    before it.
    """
    conflicts = reserved_names.find_conflicts(session, actor, [push.name for push in pushes])
    state = _read_state(session, actor, {push.name.namespace for push in pushes})
    existing = _find_existing(session, [push for push in pushes if push.name.namespace in state.counted])
    errors: dict[int, RegistryError] = {}
    for position, push in enumerate(pushes):
        namespace = push.name.namespace
        try:
            if push.name in conflicts:
                raise conflicts[push.name]
            state.check_open_pushes(namespace)
            usage = state.usages.get(namespace)
            is_new = (push.name, push.manifest.digest) not in existing
            if usage is not None and is_new:
                _require_space(state.limits[namespace], usage, push.manifest.size_bytes, 1, "version")
                usage.planned_versions += 1
            if usage is not None:
                usage.staged_bytes += push.staged_bytes
            if is_new:
                state.check_rate(namespace)
        except RegistryError as e:
            errors[position] = e
        else:
            state.of_token += 1
            state.open_pushes[namespace] += 1
    return errors


def check_before_staging(session: Session, actor: Actor, name: AdapterName, size_bytes: int, *, is_new: bool) -> None:
    """Check bytes that a client sends before it says which version they are for; `is_new`: by a new push."""
    reserved_names.check_available(session, actor, name)
    state = _read_state(session, actor, {name.namespace})
    if is_new:
        state.check_open_pushes(name.namespace)
    if (usage := state.usages.get(name.namespace)) is not None:
        _require_space(state.limits[name.namespace], usage, size_bytes, 0, "upload")
    if size_bytes:  # else its files are here already, and its commit checks it
        state.check_rate(name.namespace)


def check_rate(session: Session, name: AdapterName, manifest: Manifest) -> None:
    """Check a version whose bytes are here against the limit of an hour (RATE_LIMITED), unless it exists."""
    limits = {row.name: row for row in session.exec(_SELECT_NAMESPACES, params={"names": [name.namespace]})}
    recent = _count_recent(session, [row.name for row in limits.values() if row.pushes_per_hour is not None])
    if recent and (name, manifest.digest) not in _find_existing(session, [NewPush(name, manifest, 0)]):
        _State(0, Counter(), limits, {}, recent).check_rate(name.namespace)


@dataclass
class _State:
    """What limits new pushes: open pushes, limits and usages by namespace, and the pushes of the last hour."""

    of_token: int
    open_pushes: Counter[str]
    limits: Mapping[str, NamespaceRow]
    usages: dict[str, _Usage]
    recent: dict[str, tuple[int, datetime | None]]

    @property
    def counted(self) -> set[str]:
        """Namespaces with a limit in which a version that exists is not counted again."""
        return {*self.usages, *self.recent}

    def check_open_pushes(self, namespace: str) -> None:
        """Raise `Unavailable` (RATE_LIMITED) if the token or the namespace has too many."""
        _check_open_pushes("this token", self.of_token, PUSHES_OF_TOKEN_LIMIT)
        _check_open_pushes(f"namespace '{namespace}'", self.open_pushes[namespace], PUSHES_OF_NAMESPACE_LIMIT)

    def check_rate(self, namespace: str) -> None:
        """Raise `Unavailable` (RATE_LIMITED) if the namespace received too many, else count one more."""
        if namespace in self.recent:
            count, oldest = self.recent[namespace]
            limit = self.limits[namespace].pushes_per_hour
            if limit is not None and count >= limit:
                wait = (oldest + HOUR - db.now()).total_seconds() if oldest else HOUR.total_seconds()
                raise rate_limited(f"pushes into namespace '{namespace}'", limit, max(0.0, wait), "hour")
            self.recent[namespace] = (count + 1, oldest or db.now())


def _read_state(session: Session, actor: Actor, namespaces: Collection[str]) -> _State:
    """Read it, and lock the namespaces that have a quota."""
    params: dict[str, Any] = {"names": sorted(namespaces), "now": db.now()}
    of_token, open_pushes = 0, Counter[str]()
    for namespace, token_id, count in session.exec(_COUNT_OPEN, params=params | {"token_id": actor.token_id}):
        open_pushes[namespace] += count
        of_token += count if token_id == actor.token_id else 0
    limits = {row.name: row for row in session.exec(_SELECT_NAMESPACES, params=params)}
    usages = _lock_usages(session, limits)
    if usages:
        for namespace, staged_bytes in session.exec(_SUM_STAGED, params=params | {"names": sorted(usages)}):
            usages[namespace].staged_bytes = int(staged_bytes)
    recent = _count_recent(session, [row.name for row in limits.values() if row.pushes_per_hour is not None])
    return _State(of_token, open_pushes, limits, usages, recent)


def _check_open_pushes(owner: str, count: int, limit: int) -> None:
    if count >= limit:
        raise Unavailable(
            "RATE_LIMITED",
            f"{owner} has {count} open pushes, which is the limit",
            next_step="commit them, or wait until they expire",
            retry_after_seconds=int(HOUR.total_seconds()),
        )


def check_before_commit(session: Session, versions: Sequence[tuple[AdapterName, Manifest]]) -> dict[int, RegistryError]:
    """Check new versions before their rows are written; return the errors by position. Locks as before an upload."""
    params = {"names": sorted({name.namespace for name, _ in versions})}
    limits = {row.name: row for row in session.exec(_SELECT_NAMESPACES, params=params)}
    usages = _lock_usages(session, limits)
    errors: dict[int, RegistryError] = {}
    for position, (name, manifest) in enumerate(versions):
        usage = usages.get(name.namespace)
        if usage is None:
            continue
        try:
            _require_space(limits[name.namespace], usage, manifest.size_bytes, 1, "version")
        except TooLarge as e:
            errors[position] = e
        else:
            usage.used_bytes += manifest.size_bytes
            usage.used_versions += 1
    return errors


def check_before_report(session: Session, namespace: str, version_id: int | None, size_bytes: int) -> None:
    """Check that a report of the namespace's own worker fits beside its versions and such reports. `TooLarge`.

    It replaces those of its version. Pushes do not count reports: to add them up reads a row for each version.
    """
    row = session.get(NamespaceRow, namespace)
    if row is not None and row.quota_bytes is not None:
        usage = _lock_usages(session, {row.name: row})[row.name]
        of_others = select(VerdictRow.report).join(VersionRow).join(AdapterRow).where(
            AdapterRow.namespace == namespace, col(VerdictRow.by_owner), VerdictRow.version_id != version_id
        )  # fmt: skip
        reports = select(func.coalesce(func.sum(BlobRow.size_bytes), 0)).where(col(BlobRow.digest).in_(of_others))
        usage.used_bytes += int(session.exec(reports).one())
        _require_space(row, usage, size_bytes, 0, "report")


def check_before_transfer(session: Session, name: AdapterName, adapter_id: int) -> None:
    """Check that the versions of an adapter fit into the namespace it moves to. `TooLarge` as for a push."""
    row = session.get(NamespaceRow, name.namespace)
    if row is not None and _has_quota(row):
        usage = _lock_usages(session, {row.name: row})[row.name]
        totals = select(func.coalesce(func.sum(VersionRow.size_bytes), 0), func.count(col(VersionRow.id)))
        size_bytes, versions = session.exec(
            totals.where(VersionRow.adapter_id == adapter_id, col(VersionRow.purged_at).is_(None))
        ).one()
        _require_space(row, usage, int(size_bytes), versions, "adapter")


def read_usage(session: Session, namespaces: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the bytes and the number of versions of each of these namespaces."""
    statement = (
        select(
            NamespaceUsageRow.namespace, func.sum(NamespaceUsageRow.size_bytes), func.sum(NamespaceUsageRow.versions)
        )
        .where(any_of(col(NamespaceUsageRow.namespace), namespaces))
        .group_by(col(NamespaceUsageRow.namespace))
    )
    usage = {namespace: (int(size_bytes), int(count)) for namespace, size_bytes, count in session.exec(statement)}
    return {namespace: usage.get(namespace, (0, 0)) for namespace in namespaces}


def _has_quota(row: NamespaceRow) -> bool:
    return row.quota_bytes is not None or row.quota_versions is not None


def _lock_usages(session: Session, limits: Mapping[str, NamespaceRow]) -> dict[str, _Usage]:
    """Lock those namespaces that have a quota, and return what they hold."""
    namespaces = sorted(name for name, row in limits.items() if _has_quota(row))
    if not namespaces:
        return {}
    session.exec(_LOCK, params={"names": namespaces}).all()
    return {name: _Usage(*used) for name, used in read_usage(session, namespaces).items()}


def _require_space(row: NamespaceRow, usage: _Usage, size_bytes: int, versions: int, noun: str) -> None:
    """`TooLarge` (QUOTA_EXCEEDED) if the namespace would exceed its quota."""
    used_bytes, used_versions, staged_bytes = usage.used_bytes, usage.used_versions, usage.staged_bytes
    planned = usage.planned_versions
    if row.quota_bytes is not None and used_bytes + staged_bytes + size_bytes > row.quota_bytes:
        staged = f", open pushes hold {staged_bytes}" if staged_bytes else ""
        excess = f"{used_bytes} of {row.quota_bytes} bytes are used{staged}, and this {noun} has {size_bytes}"
    elif row.quota_versions is not None and used_versions + planned + versions > row.quota_versions:
        before = f", pushes before it add {planned}" if planned else ""
        excess = (
            f"{used_versions} of {row.quota_versions} versions are used{before}, and this {noun} is {versions} more"
        )
    else:
        return
    raise TooLarge(
        "QUOTA_EXCEEDED",
        f"the quota of namespace '{row.name}' is full: {excess}",
        next_step="delete unused adapters, or ask an administrator for a larger quota",
    )


def _find_existing(session: Session, pushes: Sequence[NewPush]) -> set[tuple[AdapterName, str]]:
    """Name and digest of those pushes whose version exists."""
    if not pushes:
        return set()
    statement = (
        select(AdapterRow.namespace, AdapterRow.name, VersionRow.digest)
        .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
        .where(any_of(col(AdapterRow.namespace), sorted({push.name.namespace for push in pushes})))
        .where(any_of(col(VersionRow.digest), sorted({str(push.manifest.digest) for push in pushes})))
    )
    return {(AdapterName(namespace, name), digest) for namespace, name, digest in session.exec(statement)}


def _count_recent(session: Session, namespaces: Sequence[str]) -> dict[str, tuple[int, datetime | None]]:
    """How many pushes these namespaces received in the last hour, and when the first of them was."""
    if not namespaces:
        return {}
    params = {"names": sorted(namespaces), "since": db.now() - HOUR}
    recent = {namespace: (count, oldest) for namespace, count, oldest in session.exec(_RECENT, params=params)}
    return {namespace: recent.get(namespace, (0, None)) for namespace in namespaces}
