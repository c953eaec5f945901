"""The rows of new versions: written together, in one transaction, after their pushes were inspected.

- The number is taken under the adapter's lock, and the digest is looked up again under it: equal pushes that race make
  one version. No blob is read in the transaction.
- The push is still open, so it referenced every blob all the time; its blobs become `live` in the transaction.
- A closed gate of the requested alias does not undo the version; the response says why the alias did not move.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from sqlalchemy import Table, bindparam, tuple_
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import Session, col, select

from registry import names
from registry.api.transfer import PushResult
from registry.bases import UNREGISTERED
from registry.errors import Conflict, NotFound, Refused, RegistryError, Unavailable
from registry.evaluation.verdicts import WEIGHTS_PENDING, Outcome
from registry.events import EventType
from registry.names import AdapterName
from registry.server import audit, failpoints
from registry.server.access import namespaces, quotas, reserved_names
from registry.server.actors import Actor, unknown_adapter
from registry.server.catalog import availability, base_rows, versions
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import AdapterRow, EventRow, VersionRow
from registry.server.evaluation import engine_compat, weights
from registry.server.evaluation.weights import BaseNorms
from registry.server.promotion import moves
from registry.server.promotion.move_decisions import Move
from registry.server.push import first_tests, inspect, version_rows
from registry.server.push.commit_member import Commit, Key, NewVersion, raise_if_failed
from registry.server.search import text_index
from registry.server.storage import references
from registry.versions.manifest import Manifest

if TYPE_CHECKING:
    from registry.engines import EngineProfile

# Built once: every push executes them.
_ADAPTERS = (
    select(AdapterRow)
    .where(tuple_(col(AdapterRow.namespace), col(AdapterRow.name)).in_(bindparam("names", expanding=True)))
    .order_by(col(AdapterRow.namespace), col(AdapterRow.name))  # so that two groups cannot deadlock
    .execution_options(populate_existing=True)
)
_LOCKED = _ADAPTERS.with_for_update()
_ADAPTER_NAME = (col(AdapterRow.namespace), col(AdapterRow.name))
_EXISTING = (
    select(VersionRow, AdapterRow.namespace, AdapterRow.name)
    .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    .where(
        any_of(col(VersionRow.digest), parameter="digests"),
        tuple_(col(AdapterRow.namespace), col(AdapterRow.name)).in_(bindparam("names", expanding=True)),
    )
    .execution_options(populate_existing=True)
)
_SET_NEWEST = (
    cast(Table, AdapterRow.__table__)  # type: ignore[attr-defined]
    .update()
    .where(col(AdapterRow.id) == bindparam("adapter_id"))
    .values(newest_number=bindparam("number"), updated_at=bindparam("at"))
)


def find_existing(session: Session, pushed: Collection[tuple[AdapterName, Manifest]]) -> dict[Key, VersionRow]:
    """The versions that exist of these adapters with these manifests."""
    if not pushed:
        return {}
    params = {
        "names": sorted({(name.namespace, name.name) for name, _ in pushed}),
        "digests": sorted({manifest.digest for _, manifest in pushed}),
    }
    rows = session.exec(_EXISTING, params=params)
    return {(f"{namespace}/{name}", row.digest): row for row, namespace, name in rows}


def write(
    session: Session, actor: Actor, commits: Sequence[Commit], *, engines: Sequence[EngineProfile], atomic: bool
) -> None:
    """Set the result of each commit: the version of its push, or the existing one if an equal push was faster.

    `MemberFailed` if some got an error instead. `atomic`: a refused alias is an error.
    """
    adapters = _lock_adapters(session, actor, commits)
    existing = find_existing(session, [(commit.name, commit.manifest) for commit in commits])
    for commit in commits:
        commit.error = _deletion_error(commit, existing.get(commit.key)) or commit.error
    new: dict[Key, Commit] = {}
    repeated: list[Commit] = []
    for commit in commits:
        if commit.key not in existing and commit.inspection is not None and commit.key not in new:
            new[commit.key] = commit
            continue
        repeated.append(commit)
        if commit.key not in existing and commit.key not in new:
            commit.error = commit.error_without_version or unknown_version(commit.name, commit.manifest.digest)
    for position, error in quotas.check_before_commit(session, [(c.name, c.manifest) for c in new.values()]).items():
        [*new.values()][position].error = error
    _refuse_incompatible(session, new.values())
    _store_bases(session, new.values())
    _end_pushes(session, new.values(), repeated)
    failpoints.reach("push.before_rows")
    _mark_live(session, new.values(), repeated)
    created = _create_versions(session, actor, adapters, [*new.values()], engines)
    versions_by_key = existing | {version.commit.key: version.row for version in created}
    refusals = _move_aliases(session, actor, commits, versions_by_key, atomic=atomic)
    session.flush()
    failpoints.reach("push.before_commit")
    aliases_now: dict[tuple[str, str], Key] = {
        (str(version.commit.name), names.NEWEST): version.commit.key for version in created
    }
    aliases_now |= {(str(c.name), c.alias): c.key for c in _with_alias(commits) if not refusals[c.push.id]}
    for version, job_id in zip(created, first_tests.enqueue(session, actor, created), strict=True):
        commit = version.commit
        pointing = sorted(alias for (_, alias), key in aliases_now.items() if key == commit.key)
        view = versions.build_new_view(
            commit.name, version.row, commit.base_row.name, commit.manifest, version.verdicts, pointing
        )
        commit.result = PushResult(version=view, created=True, job_id=job_id, alias_refused=refusals[commit.push.id])
    views = versions.build_views(session, [(commit.name, versions_by_key[commit.key]) for commit in repeated])
    for commit, view in zip(repeated, views, strict=True):
        commit.result = PushResult(version=view, created=False, alias_refused=refusals[commit.push.id])


def _refuse_incompatible(session: Session, commits: Iterable[Commit]) -> None:
    """Set the error of those that do not fit their base, in strict namespaces."""
    for commit in commits:
        findings = commit.inspection.findings if commit.inspection is not None else ()
        refusal = inspect.refusal_of(commit.name, commit.base_row.name, findings)
        if refusal is not None and namespaces.find_strict(session, [commit.name.namespace]):
            commit.error = refusal


def _store_bases(session: Session, commits: Iterable[Commit]) -> None:
    for commit in commits:
        if commit.error is None and commit.base_row.fingerprint == UNREGISTERED:
            with commit.collect_error():
                commit.base = base_rows.store_unregistered(session, commit.name.namespace, commit.base_row.name)


def _deletion_error(commit: Commit, version: VersionRow | None) -> Conflict | None:
    """The error of a push of a version that was deleted; None for any other."""
    if version is None or version.deleted_at is None:
        return None
    step = f"adapter delete --undo {commit.name}@{version.number}" if version.purged_at is None else ""
    return Conflict("VERSION_TOMBSTONED", availability.deletion_message(commit.name, version), next_step=step)


def unknown_version(name: AdapterName, digest: str) -> NotFound:
    """The error for a commit whose version is gone."""
    detail = f"the version {digest} of '{name}' was deleted in the meantime"
    return NotFound("VERSION_UNKNOWN", detail)


def _lock_adapters(session: Session, actor: Actor, commits: Sequence[Commit]) -> dict[str, AdapterRow]:
    """The rows of the adapters that get a version, created if necessary, or an alias.

    All are locked until the transaction ends, by one statement, and before any version, as in all other changes.
    """
    inspected = [commit for commit in commits if commit.inspection is not None]
    locked = sorted({(c.name.namespace, c.name.name) for c in (*inspected, *_with_alias(commits))})
    if not locked:
        return {}
    now = db.now()
    adapters = {(commit.name.namespace, commit.name.name): commit.name for commit in inspected}
    values = [
        {
            "namespace": namespace, "name": name, "newest_number": 0,
            "created_at": now, "created_by": actor.identity, "updated_at": now,
        }
        for namespace, name in sorted(adapters)
    ]  # fmt: skip
    created = [
        adapters[row.namespace, row.name]
        for row in db.insert_new_rows(session, AdapterRow, values, returning=_ADAPTER_NAME)
    ]
    conflicts = dict(reserved_names.reserve_adapters(session, actor, created)) if created else {}
    created.sort(key=str)
    events = [audit.build(session, actor, EventType.ADAPTER_CREATE, str(name)) for name in created]
    db.bulk_insert(session, events)
    rows = {f"{row.namespace}/{row.name}": row for row in session.exec(_LOCKED, params={"names": locked}).all()}
    lost = [name for name in adapters.values() if str(name) not in rows]  # deleted or renamed between the statements
    conflicts |= reserved_names.find_conflicts(session, actor, lost) if lost else {}
    for commit in inspected:
        commit.error = conflicts.get(commit.name) or (unknown_adapter(commit.name) if commit.name in lost else None)
    raise_if_failed(inspected)
    return rows


def _end_pushes(session: Session, new: Collection[Commit], repeated: Collection[Commit]) -> None:
    """End the pushes. Those of new versions must still be open."""
    raise_if_failed((*new, *repeated))
    ended = references.end_pushes(session, [commit.push.id for commit in (*new, *repeated)])
    for commit in new:
        if commit.push.id not in ended:
            commit.error = references.unknown_push(commit.push.id)
    raise_if_failed(new)


def _mark_live(session: Session, new: Iterable[Commit], repeated: Iterable[Commit]) -> None:
    """Mark the blobs of new versions live, and those that pushes of existing versions have repaired."""
    needed = {commit.push.id: commit.sizes for commit in new}
    needed |= {c.push.id: {d: n for d, n in c.sizes.items() if d in c.repaired} for c in repeated if c.repaired}
    commits = {commit.push.id: commit for commit in (*new, *repeated) if commit.push.id in needed}
    sizes = {digest: size for blobs in needed.values() for digest, size in blobs.items()}
    repaired = {digest for commit in commits.values() for digest in commit.repaired}
    lost = references.mark_group_live(session, sizes, written_now=repaired)
    for push_id, commit in commits.items():
        with commit.collect_error():
            references.check_not_lost(lost, needed[push_id])
    raise_if_failed(commits.values())


def _create_versions(
    session: Session, actor: Actor, adapters: Mapping[str, AdapterRow], commits: Sequence[Commit],
    engines: Sequence[EngineProfile],
) -> list[NewVersion]:  # fmt: skip
    """The rows of new versions, with contents, verdicts and events, and `main` on each adapter's last one."""
    if not commits:
        return []
    created = [_new_version(actor, adapters[str(commit.name)], commit) for commit in commits]
    newest = {str(version.commit.name): version.row for version in created}
    db.update_rows(
        session, _SET_NEWEST,
        [
            {"adapter_id": adapters[name].id, "number": row.number, "at": row.created_at}
            for name, row in sorted(newest.items(), key=lambda item: item[0])
        ],
    )  # fmt: skip
    db.bulk_insert_with_ids(session, [version.row for version in created], ("adapter_id", "number"))
    version_rows.add_contents(session, [(version.row, version.commit.manifest) for version in created])
    text_index.add_versions(session, [(v.row, v.commit.name, v.inspection.card_words) for v in created])
    _add_verdicts(session, created, engines)
    move_events = moves.move_all_newest(session, actor, [(version.commit.name, version.row) for version in created])
    pushed = [_push_event(session, actor, version) for version in created]
    db.bulk_insert(session, [event for pair in zip(pushed, move_events, strict=True) for event in pair])
    return created


def _new_version(actor: Actor, adapter: AdapterRow, commit: Commit) -> NewVersion:
    """Take the next number of the adapter, in its locked row."""
    inspection = commit.inspection
    if inspection is None:
        raise RuntimeError(f"push {commit.push.id} was not inspected")
    now = db.now()
    set_committed_value(adapter, "newest_number", adapter.newest_number + 1)  # written for all adapters at once
    row = version_rows.version_row(
        adapter, commit.base_row, commit.manifest, number=adapter.newest_number, method=inspection.method,
        rank=inspection.rank, facts=inspection.facts, message=commit.push.message, created_at=now,
        created_by=actor.identity,
        measured_at=now if inspection.weights is not None else None,
    )  # fmt: skip
    return NewVersion(commit, inspection, row, [])


def _push_event(session: Session, actor: Actor, version: NewVersion) -> EventRow:
    row, base = version.row, version.commit.base_row
    compat = version.verdicts[0].outcome
    detail = {"digest": row.digest, "base": base.name, "compat": str(compat), "size_bytes": row.size_bytes}
    return audit.build(session, actor, EventType.VERSION_PUSH, f"{version.commit.name}@{row.number}", detail)


def _add_verdicts(session: Session, created: Sequence[NewVersion], engines: Sequence[EngineProfile]) -> None:
    """Write the verdicts that versions start with: `compat`, `weights` if they were measured, and of each engine."""
    norms_of: dict[tuple[int, str], BaseNorms] = {}
    norms_rows = []
    for version in created:
        row, base, measured = version.row, version.commit.base_row, version.inspection.weights
        version.verdicts.append(version_rows.build_compat_verdict(row, base, version.inspection))
        outcomes = (version.verdicts[0].outcome, Outcome.UNKNOWN)
        if measured is not None:
            key = (row.base_id, weights.format_of(row))
            if key not in norms_of:
                norms_of[key] = weights.load_base_norms(session, base, key[1])
            verdict, norms_row = weights.build_verdict(row, base, norms_of[key], measured)
            version.verdicts.append(verdict)
            norms_rows.append(norms_row)
            outcomes = (outcomes[0], Outcome(verdict.outcome))
        version.verdicts.extend(engine_compat.build_verdicts(row, base, outcomes, engines) if engines else ())
    db.bulk_insert(session, [verdict for version in created for verdict in version.verdicts])
    db.bulk_insert(session, norms_rows)


def _move_aliases(
    session: Session, actor: Actor, commits: Sequence[Commit], rows: Mapping[Key, VersionRow], *, atomic: bool
) -> dict[str, str]:
    """Move the aliases that pushes asked for; push → why its alias did not move, or an empty string."""
    refusals = {commit.push.id: "" for commit in commits}
    requested = pending = _with_alias(commits)
    while pending:  # of pushes that ask for the same alias, the last one has it
        first = {(str(commit.name), commit.alias): commit for commit in reversed(pending)}
        requests = [Move(c.name, c.alias, rows[c.key], reason=c.push.message) for c in first.values()]
        outcomes = moves.move_aliases(session, actor, requests)
        for commit, outcome in zip(first.values(), outcomes, strict=True):
            if isinstance(outcome, RegistryError) and not atomic and _is_refusal(outcome):
                refusals[commit.push.id] = outcome.detail
            elif isinstance(outcome, RegistryError):
                commit.error = outcome
        pending = [commit for commit in pending if commit not in first.values()]
    raise_if_failed(requested)
    return refusals


def _with_alias(commits: Iterable[Commit]) -> list[Commit]:
    """Those that ask for an alias; `main` moves by itself."""
    return [commit for commit in commits if commit.alias and commit.alias != names.NEWEST]


def _is_refusal(error: RegistryError) -> bool:
    """Whether a gate is closed, or stays closed until large weights are read."""
    is_pending = isinstance(error, Unavailable) and any(reason.code == WEIGHTS_PENDING for reason in error.findings)
    return isinstance(error, Refused) or is_pending
