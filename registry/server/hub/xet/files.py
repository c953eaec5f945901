"""Make the files that a shard describes from the xorbs of its session, as bytes of the client's upload.

- A file that has arrived, or that a version visible to the actor has, needs no xorb: so a repeated shard succeeds.
- All segments are checked before anything is written. Then each file is written and hashed piece by piece. One that is
  a whole xorb is there already: it was hashed when the xorb arrived. If one is wrong, none stays.
- Quotas count a xorb until its session ends. So the files count only for what they have beyond the xorbs: otherwise an
  upload needed twice its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from registry.digest import Digest
from registry.errors import Conflict, Invalid, TooLarge
from registry.findings import Finding
from registry.hub.operations import Body
from registry.hub.xet.shards import Segment, ShardFile, read_files
from registry.hub.xet.xorbs import XORB_LIMIT_BYTES
from registry.server import failpoints
from registry.server.database import db
from registry.server.database.models.hub import XorbRow
from registry.server.hub import drafts, uploads
from registry.server.hub.xet import sessions
from registry.server.hub.xet.sessions import XetSession
from registry.server.push import receive
from registry.server.storage import reclaim
from registry.server.storage.blobs import key_of
from registry.versions.manifest import VERSION_LIMIT_BYTES

REPEATS_LIMIT = 16
"""How many times the bytes of its xorbs a shard may write. A chunk is sent once, however often files repeat it."""


@dataclass(frozen=True, slots=True)
class Span:
    """A range of the bytes of a xorb. `is_all`: these are all of its bytes."""

    digest: Digest
    start: int
    size_bytes: int
    is_all: bool


def make(xet: XetSession, shard: Body) -> set[Digest]:
    """Make the files of a shard and end the session; return the digests of its xorbs, which nothing may need now.

    `TooLarge` (SIZE_INVALID) for files that repeat much, `Conflict` (UPLOAD_INCOMPLETE) for a xorb that the session
    does not have, `Invalid` (BLOB_MISMATCH) for a segment that is not in its xorb and for a file with another SHA-256,
    and the errors of a plan of a push.
    """
    files = read_files(shard)
    if not files:
        return set()
    sizes = _sizes_of(files)
    with db.session(xet.engine, write=False) as session:
        missing, sent = uploads.find_missing(session, xet.actor, xet.name, sizes)
        absent = missing.keys() - uploads.find_arrived(sent)
        needed = {file.digest: file.segments for file in files if file.digest in absent}
        xorbs = sessions.find_xorbs(session, xet, {s.xorb for segments in needed.values() for s in segments})
        xorb_bytes = sessions.count_bytes(session, xet)
    _check_repeats(sum(sizes[digest] for digest in needed), xorb_bytes)
    counted_bytes = xorb_bytes + sum(sent[digest].size_bytes for digest in sent.keys() & needed.keys())
    spans = {file: [_locate(file, segment, xorbs) for segment in segments] for file, segments in needed.items()}
    _write(xet, spans, sizes, counted_bytes)
    failpoints.reach("hub.shard.written")
    with db.session(xet.engine) as session:
        ended = sessions.end(session, xet)
        failpoints.reach("hub.shard.before_commit")
    return ended


def _check_repeats(size_bytes: int, xorb_bytes: int) -> None:
    if size_bytes > max(XORB_LIMIT_BYTES, min(REPEATS_LIMIT * xorb_bytes, VERSION_LIMIT_BYTES)):
        raise TooLarge(
            "SIZE_INVALID",
            f"shard: its files have {size_bytes} bytes, over the limit of {REPEATS_LIMIT} times those of their xorbs, "
            f"or of {VERSION_LIMIT_BYTES}",
            next_step="send such files by Git LFS, with HF_HUB_DISABLE_XET=1",
        )


def _write(
    xet: XetSession, spans: Mapping[Digest, Sequence[Span]], sizes: Mapping[Digest, int], counted_bytes: int
) -> None:
    if not spans:
        return
    with db.session(xet.engine) as session:
        reserved = {digest: sizes[digest] for digest in spans}
        upload = uploads.reserve(session, xet.actor, xet.name, reserved, xet.settings, counted_bytes=counted_bytes)
        upload_id = upload.id
    try:
        for digest, ranges in spans.items():
            _write_file(xet, upload_id, digest, ranges, sizes[digest])
    except Invalid:
        with db.session(xet.engine) as session:
            released = drafts.release_unused(session, [upload_id], spans)
        reclaim.delete_unneeded(xet.engine, xet.blobs, released)
        raise


def _write_file(xet: XetSession, upload_id: str, digest: Digest, ranges: Sequence[Span], size_bytes: int) -> None:
    if [(span.digest, span.is_all) for span in ranges] == [(digest, True)]:  # the xorb is this file
        receive.record(xet.engine, upload_id, digest)
        return
    chunks = chain.from_iterable(xet.blobs.open(key_of(span.digest), span.start, span.size_bytes) for span in ranges)
    receive.receive(xet.engine, xet.blobs, upload_id, digest, chunks, size_bytes)


def _sizes_of(files: Iterable[ShardFile]) -> dict[Digest, int]:
    sizes: dict[Digest, int] = {}
    for file in files:
        if sizes.setdefault(file.digest, file.size_bytes) != file.size_bytes:
            raise Invalid("REQUEST_INVALID", f"shard: gives {file.digest} two sizes")
    return sizes


def _locate(file: Digest, segment: Segment, xorbs: Mapping[str, XorbRow]) -> Span:
    """The range of the bytes of a segment. `Conflict` and `Invalid` as of `make`."""
    xorb = xorbs.get(segment.xorb)
    if xorb is None:
        message = f"is made of xorb {segment.xorb}, which this session does not have"
        raise Conflict(
            "UPLOAD_INCOMPLETE", f"{file} {message}", findings=[Finding("blob.unknown", file, message)],
            next_step="upload again: a session ends with its shard, or when its xorbs expire",
        )  # fmt: skip
    start, end = sessions.locate(xorb, segment.first, segment.end)
    if end - start != segment.size_bytes:
        run = f"chunks {segment.first} to {segment.end} of xorb {segment.xorb}"
        message = f"has a segment of {segment.size_bytes} bytes, and {run} have {end - start}"
        raise Invalid.from_finding("BLOB_MISMATCH", Finding("blob.size_mismatch", file, message))
    is_all = start == 0 and segment.end * 4 == len(xorb.chunk_ends)
    return Span(Digest(xorb.digest), start, segment.size_bytes, is_all)
