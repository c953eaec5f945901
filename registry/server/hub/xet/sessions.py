"""Sessions: the xorbs that one token has sent for one repository by one URL, until a shard makes files of them.

- A session is one push without a manifest, or several that were begun at once. So quotas, references and `gc` treat
  its xorbs as what any push sends, and a client that is gone leaves nothing once they expire.
- Ids of these pushes derive from the repository, the token and the word in the URL: no request of another token, or
  about another repository, reaches them.
- A client remembers which xorbs a URL has, even after its process ended. So each access token comes with a URL of its
  own, and a session is never continued after its shard.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import Engine, delete, func
from sqlmodel import Session, col, select

from registry.digest import Digest
from registry.errors import TooLarge
from registry.names import AdapterName
from registry.server.actors import Actor
from registry.server.database.expressions import any_of
from registry.server.database.models.hub import XorbRow
from registry.server.database.models.pushes import PushBlobRow, PushRow
from registry.server.hub import staging
from registry.server.settings import Settings
from registry.server.storage import references
from registry.server.storage.blobs import BlobStore

_WORD_BYTES = 12
_WORD = re.compile(f"[0-9a-f]{{{2 * _WORD_BYTES}}}")
XORBS_LIMIT = 1024
"""Xorbs of one session: 64 GiB of full ones."""


@dataclass(frozen=True)
class XetSession:
    """Who uploads to which repository, the word in the URL that names the session, and what the server works with."""

    engine: Engine
    blobs: BlobStore
    settings: Settings
    actor: Actor
    name: AdapterName
    word: str

    @cached_property
    def prefix(self) -> str:
        """How the ids of the session's pushes begin."""
        key = f"{self.name}\n{self.actor.token_id}\n{self.word}"
        return "xet_" + hashlib.sha256(key.encode()).hexdigest()[:32] + "_"


def is_word(text: str) -> bool:
    """Whether this may be the word of a session: what a client made up could have any length."""
    return _WORD.fullmatch(text) is not None


def new_word() -> str:
    """Return the part of a URL that names a new session."""
    return secrets.token_hex(_WORD_BYTES)


def open_push(session: Session, xet: XetSession, size_bytes: int) -> PushRow:
    """Return the open push of a session, or a new one, with space for a xorb. Errors as of a plan of a push."""
    prefix = xet.prefix
    seconds = xet.settings.push_hold_seconds
    row = staging.open_push(session, xet.actor, xet.name, prefix, size_bytes, seconds=seconds)
    number = select(func.count()).select_from(XorbRow).where(col(XorbRow.push_id).between(prefix, prefix + "z"))
    if session.exec(number).one() >= XORBS_LIMIT:
        raise TooLarge("SIZE_INVALID", f"this upload has {XORBS_LIMIT} xorbs, which is the limit")
    return row


def find_xorbs(session: Session, xet: XetSession, xorbs: Iterable[str]) -> dict[str, XorbRow]:
    """Return those of these xorbs that the session has, by their hash."""
    ids = [row.id for row in staging.find_pushes(session, xet.prefix, xet.name)]
    rows = select(XorbRow).where(any_of(col(XorbRow.push_id), ids), any_of(col(XorbRow.hash), sorted(set(xorbs))))
    return {row.hash: row for row in session.exec(rows)} if ids else {}


def count_bytes(session: Session, xet: XetSession) -> int:
    """Return the bytes that the session's xorbs count for in quotas."""
    ids = [row.id for row in staging.find_pushes(session, xet.prefix, xet.name)]
    total = select(func.coalesce(func.sum(PushBlobRow.size_bytes), 0)).where(any_of(col(PushBlobRow.push_id), ids))
    return int(session.exec(total).one()) if ids else 0


def end(session: Session, xet: XetSession) -> set[Digest]:
    """End a session; return the digests of its xorbs."""
    ids = [row.id for row in staging.find_pushes(session, xet.prefix, xet.name)]
    digests = session.exec(select(XorbRow.digest).where(any_of(col(XorbRow.push_id), ids))).all()
    session.connection().execute(delete(XorbRow).where(any_of(col(XorbRow.push_id), ids)))
    references.end_pushes(session, ids)
    return {Digest(digest) for digest in digests}


def pack_ends(ends: Sequence[int]) -> bytes:
    """Return where each chunk ends, for `XorbRow.chunk_ends`."""
    return struct.pack(f"<{len(ends)}I", *ends)


def locate(xorb: XorbRow, first: int, end: int) -> tuple[int, int]:
    """Return where the run of these chunks starts and ends in a xorb's unpacked bytes; (0, 0) if it has not so many."""
    if end * 4 > len(xorb.chunk_ends):
        return 0, 0
    starts_at, ends_at = (int.from_bytes(xorb.chunk_ends[4 * at - 4 : 4 * at], "little") for at in (first, end))
    return starts_at, ends_at
