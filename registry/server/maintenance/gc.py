"""Garbage collection: delete what nothing references, in small steps that may stop anywhere and be repeated.

    retention    versions that a rule or their expiry deletes
    end pushes   open pushes past their time, with their drafts, reference nothing any more, and what a Hub client has
                 sent and not committed is deleted
    purge        versions deleted longer ago than their grace time lose their files
    mark         unreferenced blobs become `dead`
    delete       blobs dead for longer than the grace period: claim as `deleting`, delete the bytes, then the row
    orphans      what clients wrote for ended pushes, unfinished uploads, final keys without a row

- Safe with a grace period of 0: a blob is protected by its row and references (`storage.references`), never by a clock.
  Before each change references are checked again under the lock of the row.
- `deleting` is final, and only the one process that holds the lock deletes bytes.
- No transaction has more than `BATCH` rows, and none is open while bytes are deleted, so pushes never wait for long.
- A staging key is deleted if its push is not open. The push's row is created before the key, so "no row" means "ended".
  While a link of the push may work, an empty object stays under the key, so that it does not write there again.
- A final key without a row is claimed by a row `deleting` first, so that a push of the same blob waits. It is kept
  while it is younger than the grace period, and while the bucket has refs of versions that the database lacks: then
  the database is the older one, and `adapter reindex` comes first.
- A dry run counts the same and changes nothing.
"""

import contextlib
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice

from sqlalchemy import ColumnElement, Engine, and_, delete, func, or_, tuple_, update
from sqlmodel import Session, SQLModel, col, select

from registry.api.maintenance import GcReport, GcRequest
from registry.digest import Digest
from registry.errors import Unavailable, invalid_cursor
from registry.events import DeliveryState, EventType
from registry.server import audit, failpoints
from registry.server.actors import EXCHANGE, SYSTEM, Actor
from registry.server.catalog import base_rows, refs
from registry.server.catalog.search import text_index
from registry.server.catalog.versions import parse_cursor
from registry.server.database import db, locks
from registry.server.database.locks import ProcessLock
from registry.server.database.models import BlobRow, IdempotencyRow, TokenRow
from registry.server.database.models.hub import DraftRow
from registry.server.database.models.jobs import CampaignRow, JobRow
from registry.server.database.models.owner_rules import DeliveryRow
from registry.server.database.models.pushes import PushRow
from registry.server.database.models.sign_in import PageSessionRow, UsedAssertionRow
from registry.server.evaluation import weights
from registry.server.hub import drafts
from registry.server.jobs import ended
from registry.server.maintenance import reindex
from registry.server.promotion import deletion
from registry.server.promotion.retention import plan as retention
from registry.server.serving import reports
from registry.server.settings import Settings
from registry.server.storage import needs, reclaim
from registry.server.storage.blobs import BlobStore, Stat, digest_of, key_of
from registry.server.storage.states import BlobState, PushState

BATCH = 500
"""Rows of one transaction."""
WINDOW = 5000
"""Blobs that one statement scans for unreferenced ones."""
FAILURES_LIMIT = 20
"""Keys that the store may fail to delete before the request fails."""
SECONDS = 10.0
"""How long one request works before it returns a cursor."""
CLOCK_MARGIN = timedelta(minutes=10)
AUDITED = ("blobs_deleted", "bytes_deleted", "orphans_deleted")
"""The counts in the audit event."""
_RETENTION = "retention:"
"""Prefix of the cursor of a run that is still among the adapters with rules, before the id of the last one."""
_ROWS = "rows:"
"""Prefix of the cursor of a run that is still among the rows, before what `collect_blobs` returned."""
END = "end"
"""The position after the last blob."""
_POSITION = re.compile(rf"(|{END}|sha256:[0-9a-f]{{64}})")
_STAGING = "staging"
_FIRST_SHARD = "blobs:00"


@dataclass
class GcRun:
    """What one request works with, what it has counted, and when its time is over."""

    engine: Engine
    blobs: BlobStore
    lock: ProcessLock
    grace: timedelta
    hold: timedelta
    delete_grace: timedelta
    """How long a deleted version can be restored."""
    links: timedelta
    """How long a link of a push may work, with a margin for the store's clock."""
    drafts: timedelta
    """How long what a Hub client has sent is kept without a commit: as long as a draft, or a push."""
    dry_run: bool
    counts: dict[str, int] = field(default_factory=dict)
    retired: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    failed_keys: set[str] = field(default_factory=set)
    """Keys that the store could not delete. The next run tries them again."""

    def count(self, name: str, number: int) -> None:
        """Add to a count of the report."""
        self.counts[name] = self.counts.get(name, 0) + number

    @property
    def is_over(self) -> bool:
        """Whether this request should return its cursor."""
        return time.monotonic() - self.started > SECONDS

    def delete_blobs(self, digests: Sequence[str]) -> list[str]:
        """Delete bytes, then rows, of blobs in the state `deleting`; return their digests. A later run repeats it."""
        deleted: list[str] = []
        try:
            for digest in digests:
                self.lock.check()
                if self.delete_key(key_of(Digest(digest))):
                    deleted.append(digest)
            reclaim.delete_rows(self.engine, self.lock, deleted)
        except Unavailable:
            with contextlib.suppress(Unavailable):
                self._mark_missing(deleted)
            raise
        return deleted

    def _mark_missing(self, digests: Sequence[str]) -> None:
        """Mark blobs that were pushed again before this process, frozen since its last check, deleted their bytes.

        Then their pushes are repeated, and repair them.
        """
        missing = [digest for digest in digests if self.blobs.stat(key_of(Digest(digest))) is None]
        again = and_(col(BlobRow.digest).in_(missing), col(BlobRow.state).in_((BlobState.PENDING, BlobState.LIVE)))
        statement = update(BlobRow).where(again).values(state=BlobState.CORRUPT).returning(col(BlobRow.digest))
        with db.session(self.engine) as session:
            for digest in session.connection().execute(statement).scalars().all():
                audit.append(session, SYSTEM, EventType.BLOB_DAMAGE, digest)

    def delete_key(self, key: str) -> bool:
        """Delete a key; False if the store fails. `Unavailable` if it fails too often."""
        try:
            self.blobs.delete(key)
        except Unavailable:
            self.failed_keys.add(key)
            self.count("keys_refused", 1)
            if len(self.failed_keys) >= FAILURES_LIMIT:
                raise
            return False
        return True


def collect_garbage(engine: Engine, blobs: BlobStore, settings: Settings, actor: Actor, request: GcRequest) -> GcReport:
    """Run one request's share of a garbage collection. `Unavailable` (TRY_LATER) while another one runs."""
    grace_seconds = settings.gc_grace_seconds if request.grace_seconds is None else request.grace_seconds
    grace, hold = timedelta(seconds=grace_seconds), timedelta(seconds=settings.push_hold_seconds)
    delete_grace = timedelta(seconds=settings.delete_grace_seconds)
    with locks.acquire(engine, reclaim.LOCK) as lock:
        links = timedelta(seconds=settings.link_seconds) + CLOCK_MARGIN
        drafts_last = timedelta(seconds=max(settings.draft_seconds, settings.push_hold_seconds))
        run = GcRun(engine, blobs, lock, grace, hold, delete_grace, links, drafts_last, request.dry_run)
        next_cursor = _continue(run, request.cursor)
    deleted = {name: run.counts[name] for name in AUDITED if run.counts.get(name)}
    if deleted and not request.dry_run:
        with db.session(engine) as session:
            audit.append(session, actor, EventType.GC_RUN, "blobs", deleted)
    return GcReport(dry_run=request.dry_run, next_cursor=next_cursor, retired=run.retired, **run.counts)


def _continue(run: GcRun, cursor: str) -> str:
    if not cursor or cursor.startswith(_RETENTION):
        adapter_id = _apply_retention(run, cursor.removeprefix(_RETENTION))
        if adapter_id is not None:
            return f"{_RETENTION}{adapter_id}"
        cursor = ""
    after = cursor.removeprefix(_ROWS)
    if cursor and (after == cursor or not _POSITION.fullmatch(after)):
        return _delete_orphans(run, cursor)
    if not run.dry_run:
        after = collect_blobs(run, after)
    else:
        if not cursor:
            _count_collectable(run)
        after = _mark_dead(run, after)
    if run.is_over:
        return _ROWS + after
    return _delete_orphans(run, _STAGING)


def _apply_retention(run: GcRun, after: str) -> int | None:
    position = parse_cursor(after, digits=18)
    retired, adapter_id = retention.apply_rules(run.engine, position, is_over=lambda: run.is_over, dry_run=run.dry_run)
    run.count("versions_retired", len(retired))
    run.retired += retired
    return adapter_id


# ------------------------------------------------------------------ from the rows
def collect_blobs(run: GcRun, after: str = "") -> str:
    """Do all steps that begin with rows, marking from this position on; return the position to continue from.

    No request scans again what an earlier one has scanned, so a run ends however many blobs are referenced.
    """
    _end_pushes(run)
    _release_abandoned(run)
    while not run.is_over and (count := deletion.purge_expired(run.engine, run.delete_grace)):
        run.count("versions_purged", count)
    _delete_dead(run)
    position = _mark_dead(run, after)
    _delete_dead(run)
    while not run.is_over and (count := refs.write_missing(run.engine, run.blobs, limit=BATCH)):
        run.count("refs_written", count)
    while not run.is_over and weights.measure_newest(run.engine, run.blobs):
        run.count("versions_measured", 1)
    text_index.mark_outdated(run.engine)
    while not run.is_over and text_index.index_newest(run.engine, run.blobs):
        pass
    _delete_ended_rows(run)
    return position


def _count_collectable(run: GcRun) -> None:
    with db.snapshot(run.engine) as session:
        deletable = or_(_is_deletable(run), col(BlobRow.state) == BlobState.DELETING)
        totals = select(func.count(), func.coalesce(func.sum(BlobRow.size_bytes), 0)).select_from(BlobRow)
        blobs, size_bytes = session.exec(totals.where(deletable)).one()
        expired = select(func.count()).select_from(PushRow).where(_is_expired_push())
        run.count("pushes_expired", session.exec(expired).one())
        run.count("versions_purged", deletion.count_expired(session, run.delete_grace))
        run.count("staged_deleted", drafts.release_abandoned(session, run.drafts, BATCH, dry_run=True))
        for name, number in count(session).items():
            run.count(name, number)
    run.count("blobs_deleted", blobs)
    run.count("bytes_deleted", int(size_bytes))


def _is_markable() -> ColumnElement[bool]:
    """Written as a negation: otherwise SQLite would use the index on the state, which is the same for most blobs."""
    return col(BlobRow.state).not_in([BlobState.DEAD, BlobState.DELETING])


def _is_expired_push() -> ColumnElement[bool]:
    return and_(col(PushRow.state) == PushState.OPEN, col(PushRow.expires_at) <= db.now())


def _is_deletable(run: GcRun) -> ColumnElement[bool]:
    marked_at = col(BlobRow.marked_at)
    return and_(col(BlobRow.state) == BlobState.DEAD, or_(marked_at <= db.now() - run.grace, marked_at.is_(None)))


def _end_pushes(run: GcRun) -> None:
    """Expire pushes. `_delete_orphans` deletes what clients wrote for them."""
    while not run.is_over:
        with db.session(run.engine) as session:
            expired = select(PushRow.id).where(_is_expired_push()).limit(BATCH).with_for_update(skip_locked=True)
            ids = session.exec(expired).all()
            rows = update(PushRow).where(col(PushRow.id).in_(ids), _is_expired_push())
            session.connection().execute(rows.values(state=PushState.EXPIRED, manifest=""))
            session.connection().execute(delete(DraftRow).where(col(DraftRow.push_id).in_(ids)))
        run.count("pushes_expired", len(ids))
        if len(ids) < BATCH:
            return


def _release_abandoned(run: GcRun) -> None:
    while True:
        with db.session(run.engine) as session:
            number = drafts.release_abandoned(session, run.drafts, BATCH)
        run.count("staged_deleted", number)
        if number < BATCH or run.is_over:
            return


def _mark_dead(run: GcRun, after: str) -> str:
    """Mark unreferenced blobs in windows, so that no statement takes longer the more of them are referenced.

    A dry run counts them, and without a grace period also as deleted.
    """
    while after != END and not run.is_over:
        with db.session(run.engine, write=False) as session:
            window = select(BlobRow.digest).where(col(BlobRow.digest) > after).order_by(col(BlobRow.digest))
            digests = session.exec(window.limit(WINDOW)).all()
            if not digests:
                return END
            in_window = col(BlobRow.digest).between(digests[0], digests[-1])
            unneeded = needs.is_unneeded(by_expired_pushes=not run.dry_run)  # a dry run has not ended these pushes
            columns = select(BlobRow.digest, BlobRow.size_bytes).where(in_window, _is_markable(), unneeded)
            rows = session.exec(columns).all()
        after = digests[-1] if len(digests) == WINDOW else END
        if run.dry_run:
            run.count("blobs_marked", len(rows))
            if not run.grace:
                run.count("blobs_deleted", len(rows))
                run.count("bytes_deleted", sum(size for _, size in rows))
            continue
        markable = [digest for digest, _ in rows]
        for start in range(0, len(markable), BATCH):
            values = {"state": BlobState.DEAD, "marked_at": db.now()}
            marked = reclaim.update_unneeded(run.engine, markable[start : start + BATCH], _is_markable(), values)
            run.count("blobs_marked", len(marked))
        failpoints.reach("gc.marked")
    return after


def _delete_dead(run: GcRun) -> None:
    """Delete what an earlier run has left in `deleting`, then claim and delete batch by batch."""
    _delete_claimed(run)
    while not run.is_over:
        with db.session(run.engine, write=False) as session:
            deletable = select(BlobRow.digest).where(_is_deletable(run)).order_by(col(BlobRow.digest)).limit(BATCH)
            digests = session.exec(deletable).all()
        if not reclaim.update_unneeded(run.engine, digests, _is_deletable(run), {"state": BlobState.DELETING}):
            return
        failpoints.reach("gc.claimed")
        _delete_claimed(run)


def _delete_claimed(run: GcRun) -> None:
    while True:
        with db.session(run.engine, write=False) as session:
            failed = [digest_of(key) for key in run.failed_keys if key.startswith("blobs/")]
            claimed = select(BlobRow.digest, BlobRow.size_bytes).where(col(BlobRow.state) == BlobState.DELETING)
            rows = session.exec(claimed.where(col(BlobRow.digest).not_in(failed)).limit(BATCH)).all()
        if not rows:
            return
        deleted = set(run.delete_blobs([digest for digest, _ in rows]))
        run.count("blobs_deleted", len(deleted))
        run.count("bytes_deleted", sum(size for digest, size in rows if digest in deleted))
        if run.is_over:
            return


def _delete_ended_rows(run: GcRun) -> None:
    with db.session(run.engine) as session:
        reports.delete_silent(session)
        base_rows.lock_names(session)
        base_rows.delete_unused(session)
    more = True
    while more and not run.is_over:
        counts = delete_batch(run.engine)
        for name, number in counts.items():
            run.count(name, number)
        more = max(counts.values()) >= BATCH


# ------------------------------------------------------------------ from the keys of the store
def _delete_orphans(run: GcRun, cursor: str) -> str:
    """Delete orphans from this cursor on until the run is over; return the next cursor, empty at the end."""
    while cursor and not run.is_over:
        cursor = _delete_staged(run) if cursor == _STAGING else _delete_orphans_of_shard(run, cursor)
    return cursor


def _delete_staged(run: GcRun) -> str:
    links_work_since = db.now() - run.links
    for stats in _batches(run.blobs.list("staging/")):
        push_ids = {stat.key.split("/")[1] for stat in stats}
        with db.session(run.engine, write=False) as session:
            rows = select(PushRow.id).where(col(PushRow.id).in_(push_ids), col(PushRow.state) == PushState.OPEN)
            open_ids = set(session.exec(rows).all())
        for stat in stats:
            keeps_links_out = not stat.size_bytes and stat.modified_at > links_work_since
            if stat.key.split("/")[1] in open_ids or keeps_links_out:
                continue
            if run.dry_run or run.delete_key(stat.key):
                run.count("staged_deleted", 1)
    if not run.dry_run:
        age = run.hold + run.grace + timedelta(days=1)
        run.count("uploads_aborted", run.blobs.delete_unfinished(age))
    return _FIRST_SHARD


def _delete_orphans_of_shard(run: GcRun, cursor: str) -> str:
    kind, _, prefix = cursor.partition(":")
    if kind != "blobs" or len(prefix) != 2 or set(prefix) - set("0123456789abcdef"):
        raise invalid_cursor()
    for stats in _batches(run.blobs.list(f"blobs/sha256/{prefix}/")):
        digests = [str(digest_of(stat.key)) for stat in stats]
        with db.session(run.engine, write=False) as session:
            with_row = set(session.exec(select(BlobRow.digest).where(col(BlobRow.digest).in_(digests))).all())
        orphans = [stat for stat in stats if str(digest_of(stat.key)) not in with_row]
        if orphans:
            _delete_old_orphans(run, orphans)
    return f"blobs:{int(prefix, 16) + 1:02x}" if prefix != "ff" else ""


def _delete_old_orphans(run: GcRun, orphans: list[Stat]) -> None:
    limit = db.now() - run.grace
    old = [stat for stat in orphans if stat.modified_at <= limit]
    if old and reindex.is_needed(run.engine, run.blobs):
        old = []
    run.count("orphans_kept", len(orphans) - len(old))
    if run.dry_run:
        run.count("orphans_deleted", len(old))
        return
    claimed: list[str] = []
    with db.session(run.engine) as session:
        for stat in old:
            digest = str(digest_of(stat.key))
            values = {"digest": digest, "size_bytes": stat.size_bytes, "state": BlobState.DELETING}
            if db.insert_new(session, BlobRow, {**values, "created_at": db.now()}):
                claimed.append(digest)
    run.count("orphans_deleted", len(run.delete_blobs(claimed)))


def _batches(stats: Iterable[Stat]) -> Iterator[list[Stat]]:
    iterator = iter(stats)
    while batch := list(islice(iterator, BATCH)):
        yield batch


# ------------------------------------------------------------------ ended rows
ENDED_RETENTION = timedelta(days=7)
"""How long ended pushes, responses to mutations and exchanged tokens are kept, for clients that retry."""
KEEP_DELIVERIES = timedelta(days=30)


def _conditions() -> dict[str, tuple[type[SQLModel], ColumnElement[bool]]]:
    """Return the count in the report → the table, and which of its rows may be deleted."""
    now = db.now()
    old = now - ENDED_RETENTION
    exchanged = and_(col(TokenRow.created_by) == EXCHANGE, col(TokenRow.expires_at) < old)
    delivered = and_(col(DeliveryRow.state) != DeliveryState.WAITING, col(DeliveryRow.ended_at) < now - KEEP_DELIVERIES)
    return {
        "pushes_deleted": (PushRow, and_(col(PushRow.state) != PushState.OPEN, col(PushRow.expires_at) < old)),
        "responses_deleted": (IdempotencyRow, col(IdempotencyRow.created_at) < old),
        "tokens_deleted": (TokenRow, exchanged),
        "assertions_deleted": (UsedAssertionRow, col(UsedAssertionRow.expires_at) < now),
        "sessions_deleted": (PageSessionRow, col(PageSessionRow.expires_at) < now),
        "deliveries_deleted": (DeliveryRow, delivered),
        "jobs_deleted": (JobRow, ended.is_old()),
        "campaigns_deleted": (CampaignRow, ended.is_empty_campaign()),
    }


def count(session: Session) -> dict[str, int]:
    """Return how many rows of each kind may be deleted."""
    return {
        name: session.exec(select(func.count()).select_from(table).where(condition)).one()
        for name, (table, condition) in _conditions().items()
    }


def delete_batch(engine: Engine) -> dict[str, int]:
    """Delete up to `BATCH` rows of each kind, each in a transaction of its own; return how many.

    The rows are picked in a common table expression: PostgreSQL may run a plain subquery again for each row.
    """
    counts = {}
    for name, (table, condition) in _conditions().items():
        if table is JobRow:
            with db.session(engine) as session:
                counts[name] = ended.delete_old(session, BATCH)
            continue
        keys = list(table.__table__.primary_key.columns)  # type: ignore[attr-defined]
        picked = select(*keys).where(condition).limit(BATCH).with_for_update(skip_locked=True).cte("picked")
        statement = delete(table).where(tuple_(*keys).in_(select(*picked.c)))
        with db.session(engine) as session:
            counts[name] = session.connection().execute(statement).rowcount
    return counts
