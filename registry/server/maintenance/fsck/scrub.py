"""The deep stage: read and hash each blob. A wrong one is marked `corrupt`, and restored if there is a second copy.

- Bytes that hash to their digest are right, whatever the row says: a blob that was repaired becomes `live` again.
- A row changes only if it is as it was before the bytes were read, so a repair in the meantime is not undone.
- Each change to `corrupt` or back to `live` is an audit event.
- Bytes that cannot be read now (a bad sector, an error of the store) are a finding and do not stop the check, unless
  the store does not respond at all. They are not marked, because nobody has seen that they are wrong.
- Bytes are restored like those of a push: staged, verified, then replaced atomically.
"""

from __future__ import annotations

import contextlib
import time

from sqlalchemy import and_, update
from sqlmodel import col, select

from registry.digest import Digest, Hasher
from registry.errors import Invalid, NotFound, TooLarge, Unavailable
from registry.events import EventType
from registry.server import audit
from registry.server.database import db
from registry.server.database.models import BlobRow
from registry.server.maintenance.fsck.run import FsckRun
from registry.server.storage.blobs import BlobStore, key_of, staging_key_of
from registry.server.storage.references import BlobState

BATCH = 32
SECONDS = 5.0
PUSH_ID = "scrub"
EVENTS = {BlobState.CORRUPT: EventType.BLOB_DAMAGE, BlobState.LIVE: EventType.BLOB_REPAIR}
READABLE = (BlobState.LIVE, BlobState.CORRUPT)


def check_bytes(run: FsckRun, after: str) -> str:
    """Check the next blobs after this digest, for some seconds; return the last digest, empty at the end."""
    started = time.monotonic()
    with run.snapshot() as session:
        statement = select(BlobRow).where(col(BlobRow.digest) > after, col(BlobRow.state).in_(READABLE))
        rows = session.exec(statement.order_by(col(BlobRow.digest)).limit(BATCH)).all()
    for row in rows:
        _check(run, row)
        if time.monotonic() - started > SECONDS:
            return row.digest
    return rows[-1].digest if len(rows) == BATCH else ""


def _check(run: FsckRun, row: BlobRow) -> None:
    digest = Digest(row.digest)
    try:
        problem = _find_problem(run, digest, row.size_bytes)
    except Unavailable as e:
        _restore_unreadable(run, digest, row.size_bytes, e)
        return
    run.count("hashed")
    if not problem:
        if row.state == BlobState.CORRUPT and _set_state(run, row, BlobState.LIVE):
            run.add("blob.repaired", digest, "its bytes are right again", severity="info")
        else:
            _set_state(run, row, BlobState(row.state))
        return
    if not _set_state(run, row, BlobState.CORRUPT):
        return  # changed meanwhile: deleted, or repaired by a push
    if run.second_copy is None:
        run.add("blob.damaged", digest, problem)
    elif _restore(run, run.second_copy, digest, row.size_bytes):
        run.add("blob.restored", digest, f"{problem}; restored from the second copy", severity="warning")
    else:
        run.add("blob.damaged", digest, f"{problem}; the second copy has no good bytes either")


def _restore_unreadable(run: FsckRun, digest: Digest, size_bytes: int, error: Unavailable) -> None:
    with contextlib.suppress(Unavailable):
        if run.second_copy is not None and _restore(run, run.second_copy, digest, size_bytes):
            run.add("blob.restored", digest, f"{error.detail}; restored from the second copy", severity="warning")
            return
    run.add_unreadable(digest, error)


def _find_problem(run: FsckRun, digest: Digest, size_bytes: int) -> str:
    """Describe what is wrong with a blob's bytes; empty if they are right."""
    hasher = Hasher()
    try:
        for chunk in run.blobs.open(key_of(digest)):
            hasher.update(chunk)
    except NotFound:
        return "the store has no bytes of it"
    run.bytes_hashed += hasher.size_bytes
    if hasher.digest() == digest and hasher.size_bytes == size_bytes:
        return ""
    return f"its {hasher.size_bytes} bytes hash to {hasher.digest()}"


def _restore(run: FsckRun, second_copy: BlobStore, digest: Digest, size_bytes: int) -> bool:
    staging_key = staging_key_of(PUSH_ID, digest)
    try:
        run.blobs.put(staging_key, second_copy.open(key_of(digest)), expect=digest, limit_bytes=size_bytes)
        run.blobs.promote(staging_key, digest, replace=True)
    except (NotFound, Invalid, TooLarge):  # the copy is missing, or damaged as well
        return False
    run.blobs.delete(staging_key)
    with db.session(run.engine) as session:
        row = session.get(BlobRow, digest)
    return row is not None and _set_state(run, row, BlobState.LIVE)


def _set_state(run: FsckRun, row: BlobRow, state: BlobState) -> bool:
    """Set the state and the time of the check unless the row has changed since; return whether it was set."""
    checked_at = col(BlobRow.checked_at)
    unchanged = checked_at.is_(None) if row.checked_at is None else checked_at == row.checked_at
    unchanged = and_(unchanged, col(BlobRow.created_at) == row.created_at)  # a row that was deleted and created again
    with db.session(run.engine) as session:
        rows = update(BlobRow).where(col(BlobRow.digest) == row.digest, col(BlobRow.state) == row.state, unchanged)
        was_set = bool(session.connection().execute(rows.values(state=state, checked_at=db.now())).rowcount)
        if was_set and state != row.state:
            audit.append(session, run.actor, EVENTS[state], row.digest)
        return was_set
