"""Garbage collection: delete what nothing references, in small steps that may stop anywhere and be repeated.

    end pushes   open pushes past their time reference nothing any more
    mark         unreferenced blobs become `dead`
    delete       blobs dead for longer than the grace period: claim as `deleting`, delete the bytes, then the row
    orphans      staging keys of ended pushes, unfinished uploads, final keys without a row

- Safe with a grace period of 0: a blob is protected by its row and references (`storage.references`), never by a clock.
- `deleting` is final, and only the one process that holds the lock deletes bytes.
- No transaction has more than `BATCH` rows, and none is open while bytes are deleted, so pushes never wait for long.
- A dry run counts the same and changes nothing.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Engine

from registry.api.maintenance import GcReport, GcRequest
from registry.events import EventType
from registry.server import audit
from registry.server.actors import Actor
from registry.server.database import db, locks
from registry.server.maintenance.gc import blobs as blob_rows
from registry.server.maintenance.gc import orphans
from registry.server.maintenance.gc.run import GcRun
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore

LOCK = "gc"
AUDITED = ("blobs_deleted", "bytes_deleted", "strays_deleted")
"""The counts in the audit event."""
_ROWS = "rows:"
"""Prefix of the cursor of a run that is still among the rows, before what `collect_blobs` returned."""


def collect_garbage(engine: Engine, blobs: BlobStore, settings: Settings, actor: Actor, request: GcRequest) -> GcReport:
    """Run one request's share of a garbage collection. `Unavailable` (TRY_LATER) while another one runs."""
    grace_seconds = settings.gc_grace_seconds if request.grace_seconds is None else request.grace_seconds
    grace, hold = timedelta(seconds=grace_seconds), timedelta(seconds=settings.push_hold_seconds)
    with locks.acquire(engine, LOCK) as lock:
        run = GcRun(engine, blobs, lock, grace, hold, request.dry_run)
        next_cursor = _continue(run, request.cursor)
    deleted = {name: run.counts[name] for name in AUDITED if run.counts.get(name)}
    if deleted and not request.dry_run:
        with db.session(engine) as session:
            audit.append(session, actor, EventType.UPKEEP_COLLECT, "blobs", deleted)
    return GcReport(dry_run=request.dry_run, next_cursor=next_cursor, **run.counts)


def _continue(run: GcRun, cursor: str) -> str:
    after = cursor.removeprefix(_ROWS)
    if cursor and (after == cursor or not blob_rows.is_position(after)):
        return orphans.delete_orphans(run, cursor)
    if run.dry_run:
        blob_rows.count_collectable(run)
    else:
        after = blob_rows.collect_blobs(run, after)
        if run.is_over:
            return _ROWS + after
    return orphans.delete_orphans(run, orphans.STAGING)
