"""The part of garbage collection that begins with rows: end pushes, mark blobs, claim and delete them, forget old rows.

- Before each change, whether a blob is referenced is checked again under the lock of its row, in a separate statement.
- A run stops only between two batches; the next request goes on from what the rows say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, or_, update
from sqlmodel import col, select

from registry.server import failpoints
from registry.server.catalog import metadata_backup
from registry.server.database import db
from registry.server.database.models import BlobRow, IdempotencyRow, PushRow
from registry.server.evaluation import weights
from registry.server.maintenance.gc.run import BATCH, GcRun
from registry.server.serving import reports
from registry.server.storage import references
from registry.server.storage.blobs import digest_of
from registry.server.storage.references import BlobState, PushState

KEEP_ENDED = timedelta(days=7)
"""How long ended pushes and responses to mutations are kept, for clients that retry."""
END = "end"
"""The position after the last blob."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
WINDOW = 5000
"""Blobs that one statement scans for unreferenced ones."""


def collect_blobs(run: GcRun, after: str = "") -> str:
    """Do all steps, marking from this position on, until the run is over; return the position to continue from.

    No request scans again what an earlier one has scanned, so a run ends however many blobs are referenced.
    """
    _end_pushes(run)
    _delete_dead(run)
    position = _mark_dead(run, after)
    _delete_dead(run)
    _back_up(run)
    _forget(run)
    return position


def is_position(after: str) -> bool:
    """Whether `collect_blobs` can have returned this."""
    return after in ("", END) or _DIGEST.fullmatch(after) is not None


def count_collectable(run: GcRun) -> None:
    """Count what `collect_blobs` would do."""
    with db.session(run.engine, write=False) as session:
        marked = and_(_is_markable(), references.is_unneeded(by_expired_pushes=False))
        deletable = or_(_is_deletable(run), col(BlobRow.state) == BlobState.DELETING)
        if not run.grace:
            deletable = or_(deletable, marked)
        totals = select(func.count(), func.coalesce(func.sum(BlobRow.size_bytes), 0)).select_from(BlobRow)
        blobs, size_bytes = session.exec(totals.where(deletable)).one()
        for name, table, condition in (
            ("blobs_marked", BlobRow, marked),
            ("pushes_expired", PushRow, _is_expired_push()),
            ("pushes_forgotten", PushRow, _is_old_push()),
            ("answers_forgotten", IdempotencyRow, _is_old_response()),
        ):
            run.count(name, session.exec(select(func.count()).select_from(table).where(condition)).one())
    run.count("blobs_deleted", blobs)
    run.count("bytes_deleted", int(size_bytes))


# ------------------------------------------------------------------ conditions
def _is_markable() -> ColumnElement[bool]:
    """Written as a negation: otherwise SQLite would use the index on the state, which is the same for most blobs."""
    return col(BlobRow.state).not_in([BlobState.DEAD, BlobState.DELETING])


def _is_expired_push() -> ColumnElement[bool]:
    return and_(col(PushRow.state) == PushState.OPEN, col(PushRow.expires_at) <= db.now())


def _is_old_push() -> ColumnElement[bool]:
    return and_(col(PushRow.state) != PushState.OPEN, col(PushRow.expires_at) < db.now() - KEEP_ENDED)


def _is_old_response() -> ColumnElement[bool]:
    return col(IdempotencyRow.created_at) < db.now() - KEEP_ENDED


def _is_deletable(run: GcRun) -> ColumnElement[bool]:
    marked_at = col(BlobRow.marked_at)
    return and_(col(BlobRow.state) == BlobState.DEAD, or_(marked_at <= db.now() - run.grace, marked_at.is_(None)))


# ------------------------------------------------------------------ steps
def _end_pushes(run: GcRun) -> None:
    """Expire pushes and abort their multipart uploads. Their staging keys are left to `orphans`."""
    while not run.is_over:
        with db.session(run.engine) as session:
            expired = select(PushRow.id).where(_is_expired_push()).limit(BATCH).with_for_update(skip_locked=True)
            ids = session.exec(expired).all()
            rows = update(PushRow).where(col(PushRow.id).in_(ids), _is_expired_push())
            session.connection().execute(rows.values(state=PushState.EXPIRED))
        run.count("pushes_expired", len(ids))
        for push_id in ids:
            run.count("uploads_aborted", run.blobs.delete_unfinished(timedelta(0), f"staging/{push_id}/"))
        if len(ids) < BATCH:
            return


def _mark_dead(run: GcRun, after: str) -> str:
    """Mark unreferenced blobs in windows, so that no statement takes longer the more of them are referenced."""
    while after != END and not run.is_over:
        with db.session(run.engine, write=False) as session:
            window = select(BlobRow.digest).where(col(BlobRow.digest) > after).order_by(col(BlobRow.digest))
            digests = session.exec(window.limit(WINDOW)).all()
            if not digests:
                return END
            between = col(BlobRow.digest).between(digests[0], digests[-1])
            unneeded = select(BlobRow.digest).where(between, _is_markable(), references.is_unneeded())
            markable = session.exec(unneeded).all()
        after = digests[-1]
        for start in range(0, len(markable), BATCH):
            values = {"state": BlobState.DEAD, "marked_at": db.now()}
            marked = _update_unneeded(run, markable[start : start + BATCH], _is_markable(), values)
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
        if not _update_unneeded(run, digests, _is_deletable(run), {"state": BlobState.DELETING}):
            return
        failpoints.reach("gc.claimed")
        _delete_claimed(run)


def _update_unneeded(
    run: GcRun, digests: Sequence[str], condition: ColumnElement[bool], values: dict[str, Any]
) -> Sequence[str]:
    """Lock these rows and update those that are still unreferenced; return their digests.

    Two statements on purpose: one that has waited for a lock still sees *other* tables as they were before.
    """
    with db.session(run.engine) as session:
        rows = select(BlobRow.digest).where(col(BlobRow.digest).in_(digests), condition).order_by(col(BlobRow.digest))
        locked = session.exec(rows.with_for_update(skip_locked=True)).all()
        unneeded = update(BlobRow).where(col(BlobRow.digest).in_(locked), condition, references.is_unneeded())
        statement = unneeded.values(**values).execution_options(synchronize_session=False)
        return session.connection().execute(statement.returning(col(BlobRow.digest))).scalars().all()


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


def _back_up(run: GcRun) -> None:
    while not run.is_over and (written := metadata_backup.write_missing(run.engine, run.blobs, limit=BATCH)):
        run.count("records_written", written)
    while not run.is_over and (measured := weights.measure_missing(run.engine, run.blobs, limit=1)):
        run.count("versions_measured", measured)


def _forget(run: GcRun) -> None:
    with db.session(run.engine) as session:
        ids = session.exec(select(PushRow.id).where(_is_old_push()).limit(BATCH)).all()
        session.connection().execute(delete(PushRow).where(col(PushRow.id).in_(ids), _is_old_push()))
        responses = session.connection().execute(delete(IdempotencyRow).where(_is_old_response())).rowcount
        reports.delete_silent(session)
    run.count("pushes_forgotten", len(ids))
    run.count("answers_forgotten", responses)
