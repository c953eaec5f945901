"""Deep: each blob is read and hashed; a wrong one is marked `corrupt`, restored where there is a second copy.

Invariants
- What hashes to its name is true, whatever its row said: a blob that was mended in the store becomes `live` again.
- A row is changed only if it is as it was before the bytes were read: who mended a blob meanwhile is not undone.
- A blob that becomes `corrupt`, or `live` again, is an event.
- Bytes that cannot be read now (a bad sector, a store's error) are told, and do not stop the check: only a store that
  does not answer at all does. They are not marked: nobody has seen that they are wrong.
- Bytes are restored by the way of a push: staged, verified, then put in place at once.
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
from registry.server.maintenance.fsck.page import Page
from registry.server.storage.blobs import BlobStore, key_of, staging_key_of
from registry.server.storage.references import BlobState

BATCH = 32
SECONDS = 5.0
STAGED_BY = "scrub"
EVENTS = {BlobState.CORRUPT: EventType.BLOB_DAMAGE, BlobState.LIVE: EventType.BLOB_MEND}
READABLE = (BlobState.LIVE, BlobState.CORRUPT)


def check(page: Page, after: str) -> str:
    """The next blobs after this digest, for some seconds; the last digest, or empty at the end."""
    started = time.monotonic()
    with page.snapshot() as session:
        following = select(BlobRow).where(col(BlobRow.digest) > after, col(BlobRow.state).in_(READABLE))
        rows = session.exec(following.order_by(col(BlobRow.digest)).limit(BATCH)).all()
    for row in rows:
        _check(page, row)
        if time.monotonic() - started > SECONDS:
            return row.digest
    return rows[-1].digest if len(rows) == BATCH else ""


def _check(page: Page, row: BlobRow) -> None:
    digest = Digest(row.digest)
    try:
        problem = _problem(page, page.blobs, digest, row.size_bytes)
    except Unavailable as e:
        _unreadable(page, digest, row.size_bytes, e)
        return
    page.count("hashed")
    if not problem:
        if row.state == BlobState.CORRUPT and _set(page, row, BlobState.LIVE):
            page.found("blob.mended", digest, "its bytes are right again", severity="info")
        else:
            _set(page, row, BlobState(row.state))
        return
    if not _set(page, row, BlobState.CORRUPT):
        return  # it was changed meanwhile: deleted, or mended by a push
    if page.second is None:
        page.found("blob.damaged", digest, problem)
    elif _restored(page, page.second, digest, row.size_bytes):
        page.found("blob.restored", digest, f"{problem}; restored from the second copy", severity="warning")
    else:
        page.found("blob.damaged", digest, f"{problem}; the second copy has no good bytes either")


def _unreadable(page: Page, digest: Digest, size_bytes: int, error: Unavailable) -> None:
    with contextlib.suppress(Unavailable):
        if page.second is not None and _restored(page, page.second, digest, size_bytes):
            page.found("blob.restored", digest, f"{error.detail}; restored from the second copy", severity="warning")
            return
    page.unreadable(digest, error)


def _problem(page: Page, blobs: BlobStore, digest: Digest, size_bytes: int) -> str:
    """What is wrong with a blob's bytes; empty when they hash to its name."""
    hasher = Hasher()
    try:
        for chunk in blobs.open(key_of(digest)):
            hasher.update(chunk)
    except NotFound:
        return "the store has no bytes of it"
    page.bytes_hashed += hasher.size_bytes
    if hasher.digest() == digest and hasher.size_bytes == size_bytes:
        return ""
    return f"its {hasher.size_bytes} bytes hash to {hasher.digest()}"


def _restored(page: Page, second: BlobStore, digest: Digest, size_bytes: int) -> bool:
    staging_key = staging_key_of(STAGED_BY, digest)
    try:
        page.blobs.put(staging_key, second.open(key_of(digest)), expect=digest, limit_bytes=size_bytes)
        page.blobs.promote(staging_key, digest, replace=True)
    except (NotFound, Invalid, TooLarge):  # the copy is not there, or damaged too
        return False
    page.blobs.delete(staging_key)
    with db.session(page.engine) as session:
        row = session.get(BlobRow, digest)
    return row is not None and _set(page, row, BlobState.LIVE)


def _set(page: Page, row: BlobRow, state: BlobState) -> bool:
    """Note what was seen, unless somebody changed the row since; whether it was noted."""
    checked_at = col(BlobRow.checked_at)
    same = checked_at.is_(None) if row.checked_at is None else checked_at == row.checked_at
    same = and_(same, col(BlobRow.created_at) == row.created_at)  # a row that went and came again is another one
    with db.session(page.engine) as session:
        seen = update(BlobRow).where(col(BlobRow.digest) == row.digest, col(BlobRow.state) == row.state, same)
        noted = bool(session.connection().execute(seen.values(state=state, checked_at=db.now())).rowcount)
        if noted and state != row.state:
            audit.append(session, page.actor, EVENTS[state], row.digest)
        return noted
