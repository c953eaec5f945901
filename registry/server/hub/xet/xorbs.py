"""Receive a xorb: check its hashes and store its unpacked bytes.

The row that says where each chunk is comes last, so a xorb that a shard can name is whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from registry.digest import Digest, Hasher
from registry.errors import Invalid
from registry.findings import Finding
from registry.hub.operations import Body
from registry.hub.xet import hashes
from registry.hub.xet.xorbs import read_chunks
from registry.server import failpoints
from registry.server.database import db
from registry.server.database.models.hub import XorbRow
from registry.server.hub import drafts
from registry.server.hub.xet import sessions
from registry.server.hub.xet.sessions import XetSession
from registry.server.push import receive


@dataclass(frozen=True, slots=True)
class _Contents:
    """The unpacked bytes of a xorb: their digest, their number, and where each chunk ends."""

    digest: Digest
    size_bytes: int
    chunk_ends: bytes


def store(xet: XetSession, xorb: str, body: Body) -> bool:
    """Store a xorb; return False if the session has it. `Invalid` (BLOB_MISMATCH), `TooLarge`, errors as of a plan."""
    with db.session(xet.engine, write=False) as session:
        if sessions.find_xorbs(session, xet, [xorb]):
            return False
    contents = _check(xorb, body)
    with db.session(xet.engine) as session:
        push = sessions.open_push(session, xet, contents.size_bytes)
        drafts.hold_blobs(session, push, {contents.digest: contents.size_bytes})
    failpoints.reach("hub.xorb.after_rows")
    receive.receive(xet.engine, xet.blobs, push.id, contents.digest, read_chunks(body), contents.size_bytes)
    failpoints.reach("hub.xorb.stored")
    values = {"push_id": push.id, "hash": xorb, "digest": contents.digest}
    with db.session(xet.engine) as session:
        db.insert_new(session, XorbRow, values | {"chunk_ends": contents.chunk_ends})
    return True


def _check(xorb: str, body: Body) -> _Contents:
    """Unpack a xorb piece by piece and check it. `Invalid` (BLOB_MISMATCH) if it has another hash."""
    hasher = Hasher()
    ends: list[int] = []
    nodes: list[hashes.Node] = []
    for chunk in read_chunks(body):
        hasher.update(chunk)
        ends.append(hasher.size_bytes)
        nodes.append((hashes.chunk_hash(chunk), len(chunk)))
    actual = hashes.to_text(hashes.xorb_hash(nodes))
    if actual != xorb:
        raise Invalid.from_finding(
            "BLOB_MISMATCH", Finding("blob.digest_mismatch", xorb, f"the xorb hashes to {actual}")
        )
    return _Contents(hasher.digest(), hasher.size_bytes, sessions.pack_ends(ends))
