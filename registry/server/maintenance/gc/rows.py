"""The part of garbage collection that begins with rows: end pushes, mark, claim and delete, forget.

Invariants
- Whether a blob is needed is asked again under the lock of its row, in a statement of its own, before each change.
- A shift that is over stops between two batches; the next one goes on from what the rows say.
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
from registry.server.maintenance.gc.run import BATCH, Shift
from registry.server.serving import reports
from registry.server.storage import references
from registry.server.storage.blobs import digest_of
from registry.server.storage.references import BlobState, PushState

KEEP_ENDED = timedelta(days=7)
"""How long an ended push and the answer to a mutation are remembered, for a client that asks twice."""
END = "end"
"""The place after the last blob."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
WINDOW = 5000
"""Blobs that one statement looks at to find those that nobody needs."""


def collect(shift: Shift, after: str = "") -> str:
    """Everything, marking from this place on, unless the shift is over before. Answers the place to go on from.

    However many blobs are well, a run comes to its end: no shift looks at those again that an earlier one looked at.
    """
    _end_pushes(shift)
    _delete(shift)
    place = _mark(shift, after)
    _delete(shift)
    _record(shift)
    _forget(shift)
    return place


def is_place(after: str) -> bool:
    """Whether `collect` could have answered this."""
    return after in ("", END) or _DIGEST.fullmatch(after) is not None


def foresee(shift: Shift) -> None:
    """Count what `collect` would do."""
    with db.session(shift.engine, write=False) as session:
        marked = and_(_markable(), references.is_unneeded(by_expired_pushes=False))
        going = or_(_ripe(shift), col(BlobRow.state) == BlobState.DELETING)
        if not shift.grace:
            going = or_(going, marked)
        amount = select(func.count(), func.coalesce(func.sum(BlobRow.size_bytes), 0)).select_from(BlobRow)
        blobs, size_bytes = session.exec(amount.where(going)).one()
        for what, table, condition in (
            ("blobs_marked", BlobRow, marked),
            ("pushes_expired", PushRow, _late()),
            ("pushes_forgotten", PushRow, _old()),
            ("answers_forgotten", IdempotencyRow, _old_answer()),
        ):
            shift.count(what, session.exec(select(func.count()).select_from(table).where(condition)).one())
    shift.count("blobs_deleted", blobs)
    shift.count("bytes_deleted", int(size_bytes))


# ------------------------------------------------------------------ conditions
def _markable() -> ColumnElement[bool]:
    """Said by what it is not: SQLite would take the index on the state, in which most blobs are alike."""
    return col(BlobRow.state).not_in([BlobState.DEAD, BlobState.DELETING])


def _late() -> ColumnElement[bool]:
    return and_(col(PushRow.state) == PushState.OPEN, col(PushRow.expires_at) <= db.now())


def _old() -> ColumnElement[bool]:
    return and_(col(PushRow.state) != PushState.OPEN, col(PushRow.expires_at) < db.now() - KEEP_ENDED)


def _old_answer() -> ColumnElement[bool]:
    return col(IdempotencyRow.created_at) < db.now() - KEEP_ENDED


def _ripe(shift: Shift) -> ColumnElement[bool]:
    marked_at = col(BlobRow.marked_at)
    return and_(col(BlobRow.state) == BlobState.DEAD, or_(marked_at <= db.now() - shift.grace, marked_at.is_(None)))


# ------------------------------------------------------------------ steps
def _end_pushes(shift: Shift) -> None:
    """They hold nothing any more. Their staging keys are for the sweep; their uploads in parts are ended here."""
    while not shift.over:
        with db.session(shift.engine) as session:
            late = select(PushRow.id).where(_late()).limit(BATCH).with_for_update(skip_locked=True)
            ids = session.exec(late).all()
            ended = update(PushRow).where(col(PushRow.id).in_(ids), _late()).values(state=PushState.EXPIRED)
            session.connection().execute(ended)
        shift.count("pushes_expired", len(ids))
        for push_id in ids:
            shift.count("uploads_aborted", shift.blobs.delete_unfinished(timedelta(0), f"staging/{push_id}/"))
        if len(ids) < BATCH:
            return


def _mark(shift: Shift, after: str) -> str:
    """Window after window of all blobs, so that no statement is longer the more of them are well; the last one seen."""
    while after != END and not shift.over:
        with db.session(shift.engine, write=False) as session:
            window = select(BlobRow.digest).where(col(BlobRow.digest) > after).order_by(col(BlobRow.digest))
            digests = session.exec(window.limit(WINDOW)).all()
            if not digests:
                return END
            between = col(BlobRow.digest).between(digests[0], digests[-1])
            found = session.exec(select(BlobRow.digest).where(between, _markable(), references.is_unneeded())).all()
        after = digests[-1]
        for start in range(0, len(found), BATCH):
            values = {"state": BlobState.DEAD, "marked_at": db.now()}
            marked = _change(shift, found[start : start + BATCH], _markable(), values)
            shift.count("blobs_marked", len(marked))
        failpoints.reach("gc.marked")
    return after


def _delete(shift: Shift) -> None:
    """First what an earlier shift has left `deleting`, then claim after claim."""
    _remove(shift)
    while not shift.over:
        with db.session(shift.engine, write=False) as session:
            ripe = select(BlobRow.digest).where(_ripe(shift)).order_by(col(BlobRow.digest)).limit(BATCH)
            digests = session.exec(ripe).all()
        if not _change(shift, digests, _ripe(shift), {"state": BlobState.DELETING}):
            return
        failpoints.reach("gc.claimed")
        _remove(shift)


def _change(
    shift: Shift, digests: Sequence[str], condition: ColumnElement[bool], values: dict[str, Any]
) -> Sequence[str]:
    """Change those of these rows that are still unneeded, once they are locked; which they were.

    Two statements on purpose: one that has waited for a lock goes on with what it saw of *other* tables before.
    """
    with db.session(shift.engine) as session:
        locked = select(BlobRow.digest).where(col(BlobRow.digest).in_(digests), condition).order_by(col(BlobRow.digest))
        ours = session.exec(locked.with_for_update(skip_locked=True)).all()
        changed = (
            update(BlobRow).where(col(BlobRow.digest).in_(ours), condition, references.is_unneeded()).values(**values)
        )
        changed = changed.execution_options(synchronize_session=False)
        return session.connection().execute(changed.returning(col(BlobRow.digest))).scalars().all()


def _remove(shift: Shift) -> None:
    while True:
        with db.session(shift.engine, write=False) as session:
            refused = [digest_of(key) for key in shift.refused if key.startswith("blobs/")]
            claimed = select(BlobRow.digest, BlobRow.size_bytes).where(col(BlobRow.state) == BlobState.DELETING)
            rows = session.exec(claimed.where(col(BlobRow.digest).not_in(refused)).limit(BATCH)).all()
        if not rows:
            return
        gone = set(shift.remove([digest for digest, _ in rows]))
        shift.count("blobs_deleted", len(gone))
        shift.count("bytes_deleted", sum(size for digest, size in rows if digest in gone))
        if shift.over:
            return


def _record(shift: Shift) -> None:
    while not shift.over and (written := metadata_backup.write_missing(shift.engine, shift.blobs, limit=BATCH)):
        shift.count("records_written", written)
    while not shift.over and (measured := weights.add_missing(shift.engine, shift.blobs, limit=1)):
        shift.count("versions_measured", measured)


def _forget(shift: Shift) -> None:
    with db.session(shift.engine) as session:
        ids = session.exec(select(PushRow.id).where(_old()).limit(BATCH)).all()
        session.connection().execute(delete(PushRow).where(col(PushRow.id).in_(ids), _old()))
        answers = session.connection().execute(delete(IdempotencyRow).where(_old_answer())).rowcount
        reports.forget(session)
    shift.count("pushes_forgotten", len(ids))
    shift.count("answers_forgotten", answers)
