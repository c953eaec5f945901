"""Evaluate stored versions again after the rules of an engine, or the meaning of the facts, have changed.

- A verdict `engine` is outdated if its `made_by` names rules that are not installed, or if there is none. Only
  outdated ones are evaluated, so a second run writes nothing.
- A verdict `compat` is outdated if its base was not registered then, was read again since, or has got the name as an
  alias by now that the adapter's configuration claims. So is a failing one that no worker made, if a library has built
  the base's modules since: before, their names were assumed.
- Facts of another release are read from the version's configuration and headers again, without tensors. What the README
  claims stays. Versions whose bytes cannot be read are skipped.
- Verdicts are appended, a batch in one transaction with its event. An interrupted run continues where it stopped.
"""

import contextlib
import math
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Engine, func
from sqlmodel import Session, col, select

from registry.api.evaluation import RecheckEnginesPage
from registry.bases import UNREGISTERED, BaseSpec, Similarity
from registry.compat.catalog import CLAIMED_BASE, codes_that_follow_from
from registry.digest import Digest
from registry.engines import EngineProfile, rulebook
from registry.engines import facts as engine_facts
from registry.errors import RegistryError, Unavailable
from registry.evaluation.verdicts import Check, Outcome, add_up
from registry.events import EventType
from registry.jobs import Kind
from registry.names import AdapterName
from registry.server import audit
from registry.server.actors import SYSTEM, Actor
from registry.server.catalog import base_rows, base_weights, verdicts
from registry.server.catalog.versions import parse_cursor
from registry.server.database import db, locks
from registry.server.database.locks import ProcessLock
from registry.server.database.models import AdapterRow, BaseRow, VerdictRow, VersionRow
from registry.server.evaluation import engine_compat, engine_profiles
from registry.server.jobs import queue
from registry.server.push import inspect, version_rows
from registry.server.push.inspect import Inspection
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore
from registry.versions.manifest import Manifest

LOCK = "recheck-engines"
LOCK_OF_BASE = "recheck-base"
"""A new base need not wait for a run over all versions."""
BATCH = 500
HEADERS = 50
"""Versions whose headers one batch reads again at most: each takes some requests to the store."""
SECONDS = 5.0
"""How long one request works before it returns a cursor."""
CARD = "card"
"""The fact that comes from the README, not from the headers."""


@dataclass(frozen=True, slots=True)
class _Version:
    """A version with its newest outcomes of `compat` and `weights`, and the rules of each `engine` verdict.

    `loaded`: the profiles of engines with which a worker has loaded it.
    """

    id: int
    digest: str
    base_id: int
    facts: dict[str, Any]
    compat: str
    weights: str
    rules: dict[str, str]
    loaded: frozenset[str]
    predates_base: bool
    """Whether its `compat` was evaluated before its base was registered, or before its modules were read (again)."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the headers of a version say now."""

    manifest: Manifest
    inspection: Inspection
    facts: dict[str, Any]
    was_failed: bool
    """Whether `compat` had failed before, and `weights` has not."""


def evaluate_again(
    engine: Engine,
    blobs: BlobStore,
    profiles: Sequence[EngineProfile],
    *,
    actor: Actor = SYSTEM,
    cursor: str = "",
    seconds: float = math.inf,
    base: str = "",
) -> RecheckEnginesPage:
    """Evaluate versions after `cursor`, for a few seconds. `Unavailable` (TRY_LATER) while another process does.

    `base`: only those on this base.
    """
    after = parse_cursor(cursor, digits=18)
    versions = headers = renewed = 0
    deadline = time.monotonic() + seconds
    with locks.acquire(engine, LOCK_OF_BASE if base else LOCK) as lock:
        for page in _evaluate_batches(engine, blobs, actor, profiles, after, lock, base):
            lock.check()
            versions, headers = versions + page.versions, headers + page.headers
            renewed, cursor = renewed + page.verdicts, page.next_cursor
            if time.monotonic() >= deadline:
                break
    return RecheckEnginesPage(versions=versions, headers=headers, verdicts=renewed, next_cursor=cursor)


def evaluate_after(engine: Engine, blobs: BlobStore, settings: Settings) -> None:
    """Evaluate what a new release of the rules has made outdated, unless another process does."""
    with contextlib.suppress(Unavailable):
        evaluate_again(engine, blobs, engine_profiles.parse_setting(settings.engines))


def _evaluate_batches(
    engine: Engine, blobs: BlobStore, actor: Actor, profiles: Sequence[EngineProfile], after: int, lock: ProcessLock,
    base: str,
) -> Iterator[RecheckEnginesPage]:  # fmt: skip
    specs: dict[int, BaseSpec] = {}
    aliases: dict[int, Sequence[str]] = {}
    while True:
        with db.session(engine, write=False) as session:
            batch = _select_batch(session, after, base)
            is_last = len(batch) < BATCH
            missing = {version.base_id for version in batch} - set(specs)
            if missing:
                for row in session.exec(select(BaseRow).where(col(BaseRow.id).in_(missing))):
                    specs[row.id or 0], aliases[row.id or 0] = base_rows.load_spec(row), row.aliases or ()
            aliased = _find_aliased_since(session, batch, aliases)
        outdated = [v.id for v in batch if v.id in aliased or _is_outdated(v, specs[v.base_id])]
        if len(outdated) > HEADERS:
            batch, is_last = [version for version in batch if version.id <= outdated[HEADERS - 1]], False
        failed = {v.id for v in batch if v.compat == Outcome.FAIL and v.weights != Outcome.FAIL}
        readings = _read_headers(engine, blobs, outdated[:HEADERS], failed)
        batch = [_with_reading(version, readings) for version in batch]
        new_verdicts = [row for version in batch for row in _evaluate(version, profiles, specs[version.base_id])]
        if new_verdicts or readings:
            with db.session(engine) as session:
                lock.guard(session)
                _store(session, actor, readings, new_verdicts)
        after = batch[-1].id if batch else after
        yield RecheckEnginesPage(
            versions=len(batch),
            headers=len(readings),
            verdicts=len(new_verdicts),
            next_cursor="" if is_last else str(after),
        )
        if is_last:
            return


def _is_outdated(version: _Version, base: BaseSpec) -> bool:
    """Whether its headers must be read again."""
    return (version.predates_base and base.is_registered) or not engine_facts.are_current(
        version.facts.get("engine") or {}
    )


def _select_batch(session: Session, after: int, base: str) -> list[_Version]:
    """Select the next versions by id, in two statements."""
    statement = select(VersionRow.id, VersionRow.digest, VersionRow.base_id, VersionRow.facts)
    statement = (
        statement.where(col(VersionRow.id) > after, col(VersionRow.purged_at).is_(None))
        .order_by(col(VersionRow.id))
        .limit(BATCH)
    )
    if base:
        statement = statement.where(col(VersionRow.base_id).in_(select(BaseRow.id).where(BaseRow.name == base)))
    versions = session.exec(statement).all()
    if not versions:
        return []
    in_batch = (col(VerdictRow.version_id) > after, col(VerdictRow.version_id) <= versions[-1][0])
    newest = (
        select(func.max(VerdictRow.id))
        .where(*in_batch, col(VerdictRow.check).in_((Check.COMPAT, Check.WEIGHTS, Check.ENGINE)))
        .where(col(VerdictRow.by_owner).is_(False))
        .group_by(col(VerdictRow.version_id), col(VerdictRow.check), col(VerdictRow.profile))
    )
    outcome_rows = select(  # type: ignore[call-overload]  # nine columns: SQLModel has overloads for four
        VerdictRow.version_id,
        VerdictRow.check,
        VerdictRow.profile,
        VerdictRow.outcome,
        VerdictRow.made_by,
        VerdictRow.report,
        VerdictRow.base_fingerprint,
        col(VerdictRow.made_at) < col(BaseRow.created_at),
        BaseRow.library,
    ).where(col(VerdictRow.id).in_(newest), col(VerdictRow.base_id) == col(BaseRow.id))
    outcomes: dict[tuple[int, str], str] = {}
    rules: dict[int, dict[str, str]] = {}
    loaded: dict[int, set[str]] = {}
    outdated = set()
    for row in session.exec(outcome_rows):
        version_id, check, profile, outcome, made_by, report, fingerprint, predates_base, library = row
        if check == Check.COMPAT and (
            predates_base or fingerprint == UNREGISTERED or _is_assumed(outcome, report, made_by, library)
        ):
            outdated.add(version_id)
        if check == Check.ENGINE:
            rules.setdefault(version_id, {})[profile] = made_by.get("rules", "")
            if report is not None:
                loaded.setdefault(version_id, set()).add(profile)
        else:
            outcomes[version_id, check] = outcome
    return [
        _Version(
            id=version_id or 0, digest=digest, base_id=base_id, facts=dict(facts),
            compat=outcomes.get((version_id or 0, Check.COMPAT), ""),
            weights=outcomes.get((version_id or 0, Check.WEIGHTS), ""),
            rules=rules.get(version_id or 0, {}), loaded=frozenset(loaded.get(version_id or 0, ())),
            predates_base=version_id in outdated,
        )
        for version_id, digest, base_id, facts in versions
    ]  # fmt: skip


def _is_assumed(outcome: Outcome, report: Digest | None, made_by: Mapping[str, str], library: str | None) -> bool:
    """Whether this verdict refuses by headers alone, before this library had built the base's modules."""
    return outcome == Outcome.FAIL and report is None and not version_rows.tools_of(library).items() <= made_by.items()


def _find_aliased_since(session: Session, batch: Iterable[_Version], aliases: Mapping[int, Sequence[str]]) -> set[int]:
    """The versions whose `compat` is about another name of their base, which is an alias of it by now."""
    ids = [
        version.id for version in batch
        if version.facts.get("base_claimed") in aliases[version.base_id] and version.compat != Outcome.PASS
    ]  # fmt: skip
    if not ids:
        return set()
    statement = select(VerdictRow.version_id, VerdictRow.findings).join(
        VersionRow, col(VersionRow.id) == col(VerdictRow.version_id)
    )
    rows = session.exec(statement.where(col(VersionRow.id).in_(ids), verdicts.is_current(Check.COMPAT)))
    of_claim = codes_that_follow_from(CLAIMED_BASE)
    return {
        version_id for version_id, findings in rows if any(finding["code"] in of_claim for finding in findings)
    }  # fmt: skip


def _read_headers(engine: Engine, blobs: BlobStore, ids: Iterable[int], failed: Container[int]) -> dict[int, _Reading]:
    """Read the headers of versions again; leave out those that are gone or cannot be read. No transaction is open."""
    base_data: dict[int, tuple[BaseSpec, Sequence[Similarity]]] = {}
    readings = {}
    for version_id in ids:
        with db.session(engine, write=False) as session:
            row = session.get(VersionRow, version_id)
            if row is None:
                continue
            if row.base_id not in base_data:
                base = base_rows.get(session, row.base_id)
                base_data[row.base_id] = base_rows.load_spec(base), base_weights.find_relatives(session, base)
            manifest, card = Manifest.model_validate_json(row.manifest), row.facts.get(CARD)
            spec, relatives = base_data[row.base_id]
        try:
            inspection = inspect.inspect_files(blobs, manifest, spec, relatives, measure_small=False)
        except RegistryError:
            continue
        facts = {name: value for name, value in inspection.facts.items() if name != CARD}
        readings[version_id] = _Reading(
            manifest, inspection, facts | ({CARD: card} if card else {}), version_id in failed
        )
    return readings


def _with_reading(version: _Version, readings: Mapping[int, _Reading]) -> _Version:
    """Replace the facts, and drop the verdicts that were based on the old ones."""
    if version.id not in readings:
        return version
    reading = readings[version.id]
    return replace(version, facts=reading.facts, compat=str(add_up(reading.inspection.findings)), rules={})


def _evaluate(version: _Version, profiles: Sequence[EngineProfile], spec: BaseSpec) -> Iterator[VerdictRow]:
    for profile in engine_compat.of_kind(profiles, version.facts):
        if version.rules.get(str(profile)) != rulebook.digest(profile.engine):
            verdict = engine_compat.evaluate_profile(
                version.facts, profile, version.digest, spec, version.compat, version.weights
            )
            if verdict.outcome is Outcome.FAIL or verdict.profile not in version.loaded:
                yield verdicts.to_row(verdict, version.id, version.base_id)


def _store(
    session: Session, actor: Actor, readings: Mapping[int, _Reading], new_verdicts: Sequence[VerdictRow]
) -> None:
    updated = sum(_store_reading(session, actor, version_id, reading) for version_id, reading in readings.items())
    db.bulk_insert(session, new_verdicts)
    detail = {"verdicts": len(new_verdicts), "headers": updated}
    audit.append(session, actor, EventType.ENGINES_RECHECK, "verdicts", detail)


def _store_reading(session: Session, actor: Actor, version_id: int, reading: _Reading) -> bool:
    """Update the version's rows; False if the version is gone by now.

    What had failed got no smoke test when it was pushed: it gets one once it does not fail any more.
    """
    row = session.get(VersionRow, version_id)
    if row is None:
        return False
    row.facts, row.method, row.rank = reading.facts, reading.inspection.method, reading.inspection.rank
    session.add(row)
    version_rows.replace_attributes(session, row, reading.manifest)
    base = base_rows.get(session, row.base_id)
    verdict = version_rows.build_compat_verdict(row, base, reading.inspection)
    db.bulk_insert(session, [verdict])
    if reading.was_failed and verdict.outcome != Outcome.FAIL and reading.inspection.can_be_tested:
        adapter = session.get_one(AdapterRow, row.adapter_id)
        name = AdapterName(adapter.namespace, adapter.name)
        queue.enqueue(session, actor, Kind.SMOKE_TEST, row, name=name, base=base.name)
    return True
