"""The rows of new versions: written together, in one transaction, after their pushes were inspected.

- The number is taken under the adapter's lock, and the digest is looked up again under it: equal pushes that race make
  one version. No blob is read in the transaction.
- The push is still open, so it referenced every blob all the time; its blobs become `live` in the transaction.
- A closed gate of the requested alias does not undo the version; the response says why the alias did not move.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from sqlalchemy import Table, bindparam, tuple_
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import Session, col, select

from registry import names
from registry.adapters.formats import Format
from registry.api.transfer import PushResult
from registry.bases import UNREGISTERED
from registry.errors import RegistryError
from registry.evaluation.verdicts import Outcome
from registry.events import EventType
from registry.names import AdapterName
from registry.server import audit, failpoints
from registry.server.access import namespaces, quotas, reserved_names
from registry.server.actors import Actor, unknown_adapter
from registry.server.catalog import base_rows, versions
from registry.server.catalog.search import text_index
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import AdapterRow, AliasRow, BaseRow, EventRow, VerdictRow, VersionRow
from registry.server.evaluation import engine_compat, weights
from registry.server.evaluation.weights import BaseNorms
from registry.server.outcomes import collect_outcomes
from registry.server.promotion import moves
from registry.server.promotion.move_decisions import Move
from registry.server.push import commit_decisions, first_tests, version_rows
from registry.server.push.commit_decisions import (
    CommitsFailed,
    InspectedCommit,
    NewVersion,
    VersionFacts,
    VersionKey,
    require_all,
)
from registry.server.push.inspect import Inspection
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


def find_existing(session: Session, pushed: Collection[tuple[AdapterName, Manifest]]) -> dict[VersionKey, VersionRow]:
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
    session: Session, actor: Actor, commits: Sequence[InspectedCommit], *, engines: Sequence[EngineProfile],
    atomic: bool,
) -> dict[str, PushResult]:  # fmt: skip
    """Push → the version that it has created, or the existing one if an equal push was faster.

    `CommitsFailed` if some got an error instead. `atomic`: a refused alias is an error.
    """
    adapters = _lock_adapters(session, actor, commits)
    existing = find_existing(session, [(c.commit.name, c.commit.manifest) for c in commits])
    facts = _load_facts(session, commits, existing)
    creates = require_all(commits, collect_outcomes(facts, commit_decisions.creates_version))
    new = [commit for commit, creates_version in zip(commits, creates, strict=True) if creates_version]
    repeated = [commit for commit, creates_version in zip(commits, creates, strict=True) if not creates_version]
    bases = require_all(new, collect_outcomes(new, lambda commit: _store_base(session, commit)))
    _end_pushes(session, new, repeated)
    failpoints.reach("push.before_rows")
    _mark_live(session, new, repeated)
    created = _create_versions(session, actor, adapters, [*zip(new, bases, strict=True)], engines)
    versions_by_key = existing | {version.commit.key: version.row for version in created}
    refusals = _move_aliases(session, actor, commits, versions_by_key, atomic=atomic)
    session.flush()
    failpoints.reach("push.before_commit")
    job_ids = first_tests.enqueue(session, actor, created)
    aliases_of = _find_pointing(commits, created, refusals)
    results = {}
    for commit, version, job_id in zip(new, created, job_ids, strict=True):
        view = versions.build_new_view(
            version.commit.name, version.row, version.base.name, version.commit.manifest, version.verdicts,
            aliases_of[version.commit.key],
        )  # fmt: skip
        refusal = refusals.get(commit.push_id, "")
        results[commit.push_id] = PushResult(version=view, created=True, job_id=job_id, alias_refused=refusal)
    views = versions.build_views(session, [(c.commit.name, versions_by_key[c.commit.key]) for c in repeated])
    for commit, view in zip(repeated, views, strict=True):
        refusal = refusals.get(commit.push_id, "")
        results[commit.push_id] = PushResult(version=view, created=False, alias_refused=refusal)
    return results


def _find_pointing(
    commits: Sequence[InspectedCommit], created: Sequence[NewVersion], refusals: Mapping[str, str]
) -> dict[VersionKey, list[str]]:
    """The aliases that point at each version after this group: of pushes that ask for the same, the last one has it."""
    versions_of: dict[tuple[str, str], VersionKey] = {
        (str(version.commit.name), names.NEWEST): version.commit.key for version in created
    }
    versions_of |= {
        (str(c.commit.name), c.commit.alias): c.commit.key for c in _with_alias(commits) if c.push_id not in refusals
    }
    aliases_of: dict[VersionKey, list[str]] = defaultdict(list)
    for (_, alias), key in sorted(versions_of.items()):
        aliases_of[key].append(alias)
    return aliases_of


def _load_facts(
    session: Session, commits: Sequence[InspectedCommit], existing: Mapping[VersionKey, VersionRow]
) -> list[VersionFacts]:
    """What decides about each commit. The first of a group that can create a version is the candidate for it."""
    candidates: dict[VersionKey, InspectedCommit] = {}
    repeated: set[str] = set()
    for commit in commits:
        key = commit.commit.key
        if key in candidates:
            repeated.add(commit.push_id)
        elif key not in existing and commit.inspection is not None:
            candidates[key] = commit
    checked = [(commit.commit.name, commit.commit.manifest) for commit in candidates.values()]
    quota_errors = quotas.check_before_commit(session, checked)
    error_of = {commit.push_id: quota_errors.get(position) for position, commit in enumerate(candidates.values())}
    failing = {
        commit.commit.name.namespace
        for commit in candidates.values()
        if any(finding.severity == "error" for finding in commit.content[1].findings)
    }
    strict = namespaces.find_with_rule(session, "strict", failing) if failing else set()
    return [
        VersionFacts(
            commit, existing.get(commit.commit.key), commit.push_id in error_of, commit.push_id in repeated,
            error_of.get(commit.push_id), commit.commit.name.namespace in strict,
        )
        for commit in commits
    ]  # fmt: skip


def _store_base(session: Session, commit: InspectedCommit) -> BaseRow:
    base = commit.content[0]
    if base.fingerprint != UNREGISTERED:
        return base
    return base_rows.store_unregistered(session, commit.commit.name.namespace, base.name)


def _lock_adapters(session: Session, actor: Actor, commits: Sequence[InspectedCommit]) -> dict[str, AdapterRow]:
    """The rows of the adapters that get a version, created if necessary, or an alias.

    All are locked until the transaction ends, by one statement, and before any version, as in all other changes.
    """
    inspected = [commit for commit in commits if commit.inspection is not None]
    locked = sorted({(c.commit.name.namespace, c.commit.name.name) for c in (*inspected, *_with_alias(commits))})
    if not locked:
        return {}
    now = db.now()
    adapters = {(c.commit.name.namespace, c.commit.name.name): c.commit.name for c in inspected}
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
    ended = _find_ended(session, rows.values())
    # renamed or deleted since the push was planned
    lost = [name for name in adapters.values() if str(name) not in rows or rows[str(name)].id in ended]
    conflicts |= reserved_names.find_conflicts(session, actor, lost) if lost else {}
    errors: dict[AdapterName, RegistryError] = {**{name: unknown_adapter(name) for name in lost}, **conflicts}
    require_all(inspected, [errors.get(c.commit.name, c) for c in inspected])
    return rows


def _find_ended(session: Session, adapters: Iterable[AdapterRow]) -> set[int | None]:
    """The ids of those locked adapters that were deleted: they had versions, and have no `main`."""
    ids = {adapter.id for adapter in adapters if adapter.newest_number}
    if not ids:
        return set()
    main = select(AliasRow.adapter_id).where(col(AliasRow.adapter_id).in_(ids), AliasRow.alias == names.NEWEST)
    with_main = session.exec(main).all()
    return ids.difference(with_main)


def _end_pushes(session: Session, new: Sequence[InspectedCommit], repeated: Sequence[InspectedCommit]) -> None:
    """End the pushes. Those of new versions must still be open."""
    ended = references.end_pushes(session, [commit.push_id for commit in (*new, *repeated)])
    require_all(new, [c if c.push_id in ended else references.unknown_push(c.push_id) for c in new])


def _mark_live(session: Session, new: Sequence[InspectedCommit], repeated: Sequence[InspectedCommit]) -> None:
    """Mark the blobs of new versions live, and those that pushes of existing versions have repaired."""
    needed = {commit.push_id: commit.commit.sizes for commit in new}
    needed |= {c.push_id: {d: n for d, n in c.commit.sizes.items() if d in c.repaired} for c in repeated if c.repaired}
    commits = [commit for commit in (*new, *repeated) if commit.push_id in needed]
    sizes = {digest: size for blobs in needed.values() for digest, size in blobs.items()}
    repaired = {digest for commit in commits for digest in commit.repaired}
    lost = references.mark_group_live(session, sizes, written_now=repaired)
    require_all(commits, collect_outcomes(commits, lambda c: references.check_not_lost(lost, needed[c.push_id])))


def _create_versions(
    session: Session, actor: Actor, adapters: Mapping[str, AdapterRow],
    commits: Sequence[tuple[InspectedCommit, BaseRow]], engines: Sequence[EngineProfile],
) -> list[NewVersion]:  # fmt: skip
    """The rows of new versions, with contents, verdicts and events, and `main` on each adapter's last one."""
    if not commits:
        return []
    numbered = [_new_row(actor, adapters[str(c.commit.name)], c, base) for c, base in commits]
    newest = {str(c.commit.name): row for (c, _), row in zip(commits, numbered, strict=True)}
    db.update_rows(
        session, _SET_NEWEST,
        [
            {"adapter_id": adapters[name].id, "number": row.number, "at": row.created_at}
            for name, row in sorted(newest.items(), key=lambda item: item[0])
        ],
    )  # fmt: skip
    db.bulk_insert_with_ids(session, numbered, ("adapter_id", "number"))
    rows = [
        (commit.commit, base, commit.content[1], row) for (commit, base), row in zip(commits, numbered, strict=True)
    ]
    version_rows.add_contents(session, [(row, commit.manifest) for commit, _, _, row in rows])
    text_index.add_versions(session, [(row, commit.name, of.card_words) for commit, _, of, row in rows])
    verdicts = _add_verdicts(session, [(row, base, inspection) for _, base, inspection, row in rows], engines)
    created = [NewVersion(*each, of_one) for each, of_one in zip(rows, verdicts, strict=True)]
    move_events = moves.move_all_newest(session, actor, [(version.commit.name, version.row) for version in created])
    pushed = [_push_event(session, actor, version) for version in created]
    db.bulk_insert(session, [event for pair in zip(pushed, move_events, strict=True) for event in pair])
    return created


def _new_row(actor: Actor, adapter: AdapterRow, commit: InspectedCommit, base: BaseRow) -> VersionRow:
    """Take the next number of the adapter, in its locked row."""
    inspection = commit.content[1]
    now = db.now()
    set_committed_value(adapter, "newest_number", adapter.newest_number + 1)  # written for all adapters at once
    return version_rows.version_row(
        adapter, base, commit.commit.manifest, number=adapter.newest_number, method=inspection.method,
        rank=inspection.rank, facts=inspection.facts, message=commit.commit.push.message, created_at=now,
        created_by=actor.identity,
        measured_at=now if inspection.weights is not None else None,
    )  # fmt: skip


def _push_event(session: Session, actor: Actor, version: NewVersion) -> EventRow:
    row, compat = version.row, version.verdicts[0].outcome
    detail = {"digest": row.digest, "base": version.base.name, "compat": str(compat), "size_bytes": row.size_bytes}
    return audit.build(session, actor, EventType.VERSION_PUSH, f"{version.commit.name}@{row.number}", detail)


def _add_verdicts(
    session: Session, created: Sequence[tuple[VersionRow, BaseRow, Inspection]], engines: Sequence[EngineProfile]
) -> list[list[VerdictRow]]:
    """Write the verdicts that versions start with: `compat`, `weights` if they were measured, and of each engine."""
    norms_of: dict[tuple[int, Format], BaseNorms] = {}
    norms_rows = []
    verdicts_of: list[list[VerdictRow]] = []
    for row, base, inspection in created:
        verdicts = [version_rows.build_compat_verdict(row, base, inspection)]
        outcomes = (verdicts[0].outcome, Outcome.UNKNOWN)
        if inspection.weights is not None:
            key = (row.base_id, weights.format_of(row))
            if key not in norms_of:
                norms_of[key] = weights.load_base_norms(session, base, key[1])
            verdict, norms_row = weights.build_verdict(row, base, norms_of[key], inspection.weights)
            verdicts.append(verdict)
            norms_rows.append(norms_row)
            outcomes = (outcomes[0], Outcome(verdict.outcome))
        verdicts.extend(engine_compat.build_verdicts(row, base, outcomes, engines) if engines else ())
        verdicts_of.append(verdicts)
    db.bulk_insert(session, [verdict for verdicts in verdicts_of for verdict in verdicts])
    db.bulk_insert(session, norms_rows)
    return verdicts_of


def _move_aliases(
    session: Session, actor: Actor, commits: Sequence[InspectedCommit], rows: Mapping[VersionKey, VersionRow], *,
    atomic: bool,
) -> dict[str, str]:  # fmt: skip
    """Move the aliases that pushes asked for; push → why its alias did not move, of those that did not."""
    refusals: dict[str, str] = {}
    errors: dict[str, RegistryError] = {}
    pending = _with_alias(commits)
    while pending:  # of pushes that ask for the same alias, the last one has it
        first = {(str(c.commit.name), c.commit.alias): c for c in reversed(pending)}
        requests = [
            Move(c.commit.name, c.commit.alias, rows[c.commit.key], reason=c.commit.push.message)
            for c in first.values()
        ]
        for commit, outcome in zip(first.values(), moves.move_aliases(session, actor, requests), strict=True):
            if isinstance(outcome, RegistryError) and not atomic and commit_decisions.keeps_alias(outcome):
                refusals[commit.push_id] = outcome.detail
            elif isinstance(outcome, RegistryError):
                errors[commit.push_id] = outcome
        tried = {commit.push_id for commit in first.values()}
        pending = [commit for commit in pending if commit.push_id not in tried]
    if errors:
        raise CommitsFailed(errors)
    return refusals


def _with_alias(commits: Iterable[InspectedCommit]) -> list[InspectedCommit]:
    return [commit for commit in commits if commit.commit.moves_alias]
