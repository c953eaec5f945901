"""Renewal: judge stored versions again when an engine's rules, or the meaning of the facts, have changed.

Invariants
- A verdict `engine` is old when its `made_by` names other rules than those installed, or when there is none. Only old
  ones are judged again; a second run writes nothing.
- No blob is read where the facts are of this release (`analysis`); a batch of versions costs the same few statements
  whatever its size.
- Verdicts are appended, a batch in one transaction with its event; a run that is cut off goes on where it was.
- One process at a time renews (`Turn`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Engine, func, insert
from sqlmodel import Session, col, select

from registry.api.verdicts import RecheckEnginesPage
from registry.bases import BaseSpec
from registry.engines import EngineProfile, rulebook
from registry.errors import invalid_cursor
from registry.evaluation.verdicts import Check, Verdict
from registry.events import EventType
from registry.server import audit
from registry.server.actors import SYSTEM, Actor
from registry.server.catalog import bases
from registry.server.database import db, locks
from registry.server.database.models import BaseRow, VerdictRow, VersionRow
from registry.server.evaluation import engine_compat
from registry.server.maintenance import facts_backfill
from registry.server.maintenance.facts_backfill import Analysed
from registry.server.storage.blobs import BlobStore

BATCH = 500
HEADERS = 50
"""Headers that one batch reads again at most: each is some requests to the store."""
SECONDS = 5.0
"""How long one request works before it hands out a cursor."""


@dataclass(frozen=True, slots=True)
class _Known:
    """The stored verdicts of one version: its newest `compat` and `weights`, and the rules of each `engine`."""

    id: int
    digest: str
    base_id: int
    facts: dict[str, Any]
    compat: str
    weights: str
    rules: dict[str, str]


def every(engine: Engine, blobs: BlobStore, wanted: Sequence[EngineProfile]) -> RecheckEnginesPage:
    """The whole run, by the registry itself. `Unavailable` (TRY_LATER) while another process renews."""
    total = RecheckEnginesPage()
    with locks.acquire(engine, "renewal") as mine:
        for page in _pages(engine, blobs, SYSTEM, wanted, 0):
            mine.check()
            total = _sum(total, page)
    return total


def run(
    engine: Engine, blobs: BlobStore, actor: Actor, wanted: Sequence[EngineProfile], cursor: str
) -> RecheckEnginesPage:
    """Some seconds of a run, from the version after `cursor`."""
    if cursor and not (cursor.isascii() and cursor.isdigit()):
        raise invalid_cursor()
    total = RecheckEnginesPage()
    ends = time.monotonic() + SECONDS
    with locks.acquire(engine, "renewal"):
        for page in _pages(engine, blobs, actor, wanted, int(cursor or 0)):
            total = _sum(total, page)
            if page.next_cursor and time.monotonic() >= ends:
                break
    return total


def _sum(one: RecheckEnginesPage, other: RecheckEnginesPage) -> RecheckEnginesPage:
    return RecheckEnginesPage(
        versions=one.versions + other.versions,
        headers=one.headers + other.headers,
        verdicts=one.verdicts + other.verdicts,
        next_cursor=other.next_cursor,
    )


def _pages(
    engine: Engine, blobs: BlobStore, actor: Actor, wanted: Sequence[EngineProfile], after: int
) -> Iterator[RecheckEnginesPage]:
    specs: dict[int, BaseSpec] = {}
    while True:
        with db.session(engine, write=False) as session:
            batch = _batch(session, after)
            last = len(batch) < BATCH
            missing = {known.base_id for known in batch} - set(specs)
            if missing:
                found = session.exec(select(BaseRow).where(col(BaseRow.id).in_(missing)))
                specs.update((row.id or 0, bases.load_spec(row)) for row in found)
        old = [known.id for known in batch if facts_backfill.is_old(known.facts)]
        if len(old) > HEADERS:
            batch, last = [known for known in batch if known.id <= old[HEADERS - 1]], False
        read = facts_backfill.read(engine, blobs, old[:HEADERS])
        batch = [_as_read(known, read) for known in batch]
        rows = [row for known in batch for row in _renewed(known, wanted, specs[known.base_id])]
        if rows or read:
            with db.session(engine) as session:
                kept = sum(facts_backfill.keep(session, one) for one in read.values())
                if rows:
                    session.connection().execute(insert(VerdictRow), rows)
                audit.append(
                    session, actor, EventType.ENGINES_RECHECK, "verdicts", {"verdicts": len(rows), "headers": kept}
                )
        after = batch[-1].id if batch else after
        following = "" if last else str(after)
        yield RecheckEnginesPage(versions=len(batch), headers=len(read), verdicts=len(rows), next_cursor=following)
        if last:
            return


def _as_read(known: _Known, read: Mapping[int, Analysed]) -> _Known:
    """What counts of a version whose header was read again: no verdict that was made of its older facts."""
    found = read.get(known.id)
    return known if found is None else replace(known, facts=found.facts, compat=str(found.compat), rules={})


def _batch(session: Session, after: int) -> list[_Known]:
    """The next versions by id: two statements."""
    statement = select(VersionRow.id, VersionRow.digest, VersionRow.base_id, VersionRow.facts)
    found = session.exec(statement.where(col(VersionRow.id) > after).order_by(col(VersionRow.id)).limit(BATCH)).all()
    if not found:
        return []
    span = (col(VerdictRow.version_id) > after, col(VerdictRow.version_id) <= found[-1][0])
    newest = (
        select(func.max(VerdictRow.id))
        .where(*span, col(VerdictRow.check).in_((Check.COMPAT, Check.WEIGHTS, Check.ENGINE)))
        .group_by(col(VerdictRow.version_id), col(VerdictRow.check), col(VerdictRow.profile))
    )
    judged = select(  # type: ignore[call-overload]  # five columns: SQLModel has names for four
        VerdictRow.version_id, VerdictRow.check, VerdictRow.profile, VerdictRow.outcome, VerdictRow.made_by
    ).where(col(VerdictRow.id).in_(newest))
    header: dict[int, str] = {}
    numbers: dict[int, str] = {}
    rules: dict[int, dict[str, str]] = {}
    for version_id, check, profile, outcome, made_by in session.exec(judged):
        if check == Check.COMPAT:
            header[version_id] = outcome
        elif check == Check.WEIGHTS:
            numbers[version_id] = outcome
        else:
            rules.setdefault(version_id, {})[profile] = made_by.get("rules", "")
    return [
        _Known(id, digest, base_id, dict(facts), header.get(id, ""), numbers.get(id, ""), rules.get(id, {}))
        for id, digest, base_id, facts in ((row[0] or 0, *row[1:]) for row in found)
    ]


def _renewed(known: _Known, wanted: Sequence[EngineProfile], spec: BaseSpec) -> Iterator[dict[str, Any]]:
    for asked in wanted:
        if known.rules.get(str(asked)) != rulebook.digest(asked.engine):
            yield _row(
                known,
                engine_compat.evaluate_profile(known.facts, asked, known.digest, spec, known.compat, known.weights),
            )


def _row(known: _Known, verdict: Verdict) -> dict[str, Any]:
    return {
        "version_id": known.id,
        "check": str(verdict.check),
        "profile": verdict.profile,
        "base_id": known.base_id,
        "base_fingerprint": verdict.base_fingerprint,
        "outcome": str(verdict.outcome),
        "findings": [finding.model_dump(mode="json") for finding in verdict.findings],
        "summary": verdict.summary,
        "report": None,
        "made_by": verdict.made_by,
        "made_at": db.now(),
        "job_id": "",
    }
