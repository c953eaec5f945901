"""The rows of new versions: written together, in one transaction, after their pushes were inspected.

- The number is taken under the adapter's lock, and the digest is looked up again under it: equal pushes that race make
  one version. No blob is read in the transaction.
- The push is still open, so it referenced every blob all the time; its blobs become `live` in the transaction.
- A closed gate of the requested alias does not undo the version; the response says why the alias did not move.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Table, bindparam, true, tuple_, update
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import Session, col, select

from registry import names
from registry.adapters.formats import Format
from registry.api.catalog import VersionView
from registry.api.transfer import PushResult
from registry.bases import UNREGISTERED
from registry.errors import RegistryError
from registry.evaluation.verdicts import Check, Outcome
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
_SKIP_BY_MAIN = update(VersionRow).where(col(VersionRow.id) == bindparam("of_version")).values(skipped_by_main=true())
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
    mains = moves.find_newest(session, {row.adapter_id for row in versions_by_key.values()})
    aliases_of = _find_pointing(commits, created, mains, refusals)
    results = {}
    for commit, version, job_id in zip(new, created, job_ids, strict=True):
        view = versions.build_new_view(
            version.commit.name, version.row, version.base.name, version.commit.manifest, version.verdicts,
            aliases_of[version.commit.key],
        )  # fmt: skip
        results[commit.push_id] = PushResult(
            version=view, created=True, job_id=job_id, alias_refused=refusals.get(commit.push_id, ""),
            **_describe_main(view, version.row, mains, "is now"),
        )  # fmt: skip
    views = versions.build_views(session, [(c.commit.name, versions_by_key[c.commit.key]) for c in repeated])
    for commit, view in zip(repeated, views, strict=True):
        refusal, row = refusals.get(commit.push_id, ""), versions_by_key[commit.commit.key]
        main = _describe_main(view, row, mains, "is")
        results[commit.push_id] = PushResult(version=view, created=False, alias_refused=refusal, **main)
    return results


def _describe_main(view: VersionView, row: VersionRow, mains: Mapping[int, int], verb: str) -> dict[str, Any]:
    """Where `main` is after a push, and why it is not at the version that was pushed."""
    number = mains.get(row.adapter_id, 0)
    failed = ", ".join(sorted({f"{v.check} fails" for v in view.verdicts if _keeps_main(v.check, v.outcome)}))
    if number == row.number:
        return {
            "main_number": number,
            "main": f"main {verb} version {number}" + (f", although {failed}" if failed else ""),
        }
    reason = f": {failed}" if row.skipped_by_main and failed else ""
    return {"main_number": number, "main": f"main stays at version {number}{reason}"}


def _keeps_main(check: str, outcome: str) -> bool:
    """Whether `main` does not follow a version with this verdict. Engines do not count: another one may serve it."""
    return check in (Check.COMPAT, Check.WEIGHTS) and outcome == Outcome.FAIL


def _find_pointing(
    commits: Sequence[InspectedCommit], created: Sequence[NewVersion], mains: Mapping[int, int],
    refusals: Mapping[str, str],
) -> dict[VersionKey, list[str]]:  # fmt: skip
    """The aliases that point at each version after this group: of pushes that ask for the same, the last one has it."""
    versions_of: dict[tuple[str, str], VersionKey] = {
        (str(version.commit.name), names.NEWEST): version.commit.key
        for version in created
        if mains.get(version.row.adapter_id) == version.row.number
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
    # renamed or deleted since the push was planned; a deleted one whose name is released goes on
    renamed = [name for name in adapters.values() if str(name) not in rows]
    lost = [*renamed, *(name for name in adapters.values() if str(name) in rows and rows[str(name)].id in ended)]
    conflicts |= reserved_names.find_conflicts(session, actor, lost) if lost else {}
    errors: dict[AdapterName, RegistryError] = {**{name: unknown_adapter(name) for name in renamed}, **conflicts}
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
    """The rows of new versions, with contents, verdicts and events, and `main` on the last one that it follows."""
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
    verdicts = _add_verdicts(session, [(row, base, inspection) for _, base, inspection, row in rows], engines)
    created = [NewVersion(*each, of_one) for each, of_one in zip(rows, verdicts, strict=True)]
    _mark_skipped(session, created)
    move_events = moves.move_all_newest(session, actor, [(version.commit.name, version.row) for version in created])
    words = [(row, commit.name, of.card_words) for commit, _, of, row in rows if row.id in move_events]
    text_index.add_versions(session, words)
    events = [(_push_event(session, actor, version), move_events.get(version.row.id or 0)) for version in created]
    db.bulk_insert(session, [event for pair in events for event in pair if event is not None])
    return created


def _mark_skipped(session: Session, created: Sequence[NewVersion]) -> None:
    """Mark the versions that `main` does not follow, by what is known of them now: later verdicts change nothing."""
    failing = [v for v in created if any(_keeps_main(of.check, of.outcome) for of in v.verdicts)]
    namespaces_of = {version.commit.name.namespace for version in failing}
    guarded = namespaces.find_with_rule(session, "main_skips_failing", namespaces_of) if failing else set()
    skipped = [version.row for version in failing if version.commit.name.namespace in guarded]
    for row in skipped:
        set_committed_value(row, "skipped_by_main", True)
    db.update_rows(session, _SKIP_BY_MAIN, [{"of_version": row.id} for row in skipped])


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
