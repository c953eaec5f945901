"""Garbage collection: what nobody needs goes, in small steps that may stop anywhere and be done again.

    end      open pushes whose time is up hold nothing any more
    mark     blobs that nobody needs become `dead`
    delete   blobs dead for longer than the grace: claimed as `deleting`, then their bytes, then their row
    sweep    staging keys of pushes that ended, uploads that nobody ends, final keys without a row

Invariants
- Safe with a grace of 0: what protects a blob is its row and its holds (`holds`), never a clock.
- `deleting` is on the way out for good, and only the one process whose turn it is (`turn`) deletes bytes.
- No transaction is longer than `BATCH` rows, and none is open while bytes are deleted: pushes never wait for long.
- A dry run counts the same things and changes nothing.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Engine

from registry.api.maintenance import GcReport, GcRequest
from registry.events import EventType
from registry.server import audit
from registry.server.actors import Actor
from registry.server.database import db, locks
from registry.server.maintenance.gc import rows, sweep
from registry.server.maintenance.gc.run import Shift
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore

TURN = "gc"
DELETED = ("blobs_deleted", "bytes_deleted", "strays_deleted")
"""What the audit log is told of."""
_ROWS = "rows:"
"""The cursor of a run that was still among the rows, with what `rows.collect` answered."""


def run(engine: Engine, blobs: BlobStore, settings: Settings, actor: Actor, request: GcRequest) -> GcReport:
    """One request of a run; an event tells that it deleted blobs. `Unavailable` (TRY_LATER) while another collects."""
    grace = settings.gc_grace_seconds if request.grace_seconds is None else request.grace_seconds
    hold = timedelta(seconds=settings.push_hold_seconds)
    with locks.acquire(engine, TURN) as mine:
        shift = Shift(engine, blobs, mine, timedelta(seconds=grace), hold, request.dry_run)
        following = _work(shift, request.cursor)
    deleted = {what: shift.counts[what] for what in DELETED if shift.counts.get(what)}
    if deleted and not request.dry_run:
        with db.session(engine) as session:
            audit.append(session, actor, EventType.UPKEEP_COLLECT, "blobs", deleted)
    return GcReport(dry_run=request.dry_run, next_cursor=following, **shift.counts)


def _work(shift: Shift, cursor: str) -> str:
    after = cursor.removeprefix(_ROWS)
    if cursor and (after == cursor or not rows.is_place(after)):
        return sweep.go_on(shift, cursor)
    if shift.dry_run:
        rows.foresee(shift)
    else:
        after = rows.collect(shift, after)
        if shift.over:
            return _ROWS + after
    return sweep.go_on(shift, sweep.STAGING)
