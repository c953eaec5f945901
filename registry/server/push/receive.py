"""Receive the bytes of pushes: through this server, or by what a client has written to the store.

Either way they are verified under their final key before the row of the push says so (`is_stored`). Whether the final
key exists is never looked at: a push is credited only with bytes that it has sent itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine, bindparam, update
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import Session, col

from registry.digest import Digest
from registry.errors import Invalid, Unavailable
from registry.server import failpoints
from registry.server.database import db
from registry.server.database.models.pushes import PushBlobRow
from registry.server.storage.blobs import BlobStore, BlobWriter, Bytes, Stat, key_of, staging_key_of, write_blob

WRITTEN_AT_ONCE = 4
_SET_STORED = (
    update(PushBlobRow)
    .where(col(PushBlobRow.push_id) == bindparam("of_push"), col(PushBlobRow.digest) == bindparam("of_digest"))
    .values(is_stored=True)
)


def sign_link(blobs: BlobStore, key: str, size_bytes: int, *, seconds: int, owner: str) -> str:
    """Sign a link to this server for the PUT of a blob of a push, which its staging key names."""
    if blobs.links is None or not key.startswith("staging/"):
        raise ValueError(f"no link to {key[:120]!r} can be signed")
    return blobs.links.sign("PUT", key, size_bytes, seconds=seconds, owner=owner)


class PushWriter:
    """Writes a blob under its final key and records that a push has sent it. Nothing is asked about other pushes."""

    def __init__(self, engine: Engine, blobs: BlobStore, push_id: str, digest: Digest, size_bytes: int) -> None:
        self._engine, self._of = engine, (push_id, digest)
        self._writer: BlobWriter = blobs.open_writer(key_of(digest), limit_bytes=size_bytes)

    def write(self, chunk: Bytes) -> None:
        """Write a chunk."""
        self._writer.write(chunk)

    def finish(self) -> Stat:
        """Verify the digest, make the blob available and record it."""
        stat = self._writer.finish()
        failpoints.reach("upload.stored")
        record(self._engine, *self._of)
        return stat

    def abort(self) -> None:
        """Discard what was written. May be called at any time."""
        self._writer.abort()


def receive(
    engine: Engine, blobs: BlobStore, push_id: str, digest: Digest, chunks: Iterable[Bytes], size_bytes: int
) -> None:
    """Store the bytes of a blob that a push sends."""
    writer = PushWriter(engine, blobs, push_id, digest, size_bytes)
    try:
        for chunk in chunks:
            writer.write(chunk)
        writer.finish()
    except BaseException:
        writer.abort()
        raise


def record(engine: Engine, push_id: str, digest: Digest) -> None:
    """Record that a push has sent a blob, which is verified under its final key."""
    with db.session(engine) as session:
        session.connection().execute(_SET_STORED, {"of_push": push_id, "of_digest": digest})


def write_all(blobs: BlobStore, data_of: Mapping[Digest, bytes]) -> None:
    """Store small blobs; some at a time if each waits for another machine."""

    def write(digest: Digest) -> None:
        write_blob(blobs, key_of(digest), [data_of[digest]], limit_bytes=len(data_of[digest]))

    if len(data_of) < 2 or not blobs.is_remote:
        for digest in data_of:
            write(digest)
        return
    with ThreadPoolExecutor(WRITTEN_AT_ONCE, thread_name_prefix="store") as pool:
        for _ in pool.map(write, data_of):
            pass


def record_stored(session: Session, stored: Sequence[PushBlobRow]) -> None:
    """Record that pushes have sent these blobs. The session may only have read so far; it commits."""
    if not stored:
        return
    db.begin_writing(session)
    session.connection().execute(_SET_STORED, [{"of_push": b.push_id, "of_digest": b.digest} for b in stored])
    for blob in stored:
        set_committed_value(blob, "is_stored", True)
    db.commit_early(session)


def collect(blobs: BlobStore, awaited: Iterable[PushBlobRow]) -> list[PushBlobRow]:
    """Make final what clients have written to the store, and return it. `record_stored` it, then `discard_sent`.

    `Invalid` (BLOB_MISMATCH) for parts that are not the blob: they are discarded, so that right ones can be sent.
    """
    collected = []
    for blob in awaited if blobs.is_remote else ():
        key = staging_key_of(blob.push_id, Digest(blob.digest))
        try:
            stat = blobs.collect(key, blob.size_bytes)
        except Invalid:
            blobs.delete(key)
            raise
        if stat is not None:
            collected.append(blob)
    return collected


def discard_sent(blobs: BlobStore, sent: Iterable[PushBlobRow]) -> None:
    """Delete what clients have written to the store, or may still write there by a link. `gc` does it, too."""
    with contextlib.suppress(Unavailable):
        for blob in sent if blobs.is_remote else ():
            blobs.delete(staging_key_of(blob.push_id, Digest(blob.digest)))
