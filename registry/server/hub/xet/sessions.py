"""Sessions: the xorbs that one token has sent for one repository by one URL, until a commit has the files made of them.

- A session is one push without a manifest, or several that were begun at once. So quotas, references and `gc` treat
  its xorbs as what any push stages, and a client that is gone leaves nothing once they expire.
- Ids of these pushes derive from the repository, the token and the word in the URL: no request of another token, or
  about another repository, reaches them.
- A client remembers which xorbs a URL has, even after its process ended. So the URL is given out again as long as the
  session lasts: a client that was killed sends only what is missing. Afterwards it is never given out again.
- A URL that was given out twice may have two clients at work. After the commit of one, its xorbs stay for the other.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

from sqlalchemy import ColumnElement, Engine, delete, exists, func, update
from sqlmodel import Session, col, select

from registry.errors import TooLarge, Unavailable
from registry.names import AdapterName
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models.hub import XetSessionRow, XorbRow
from registry.server.database.models.pushes import PushBlobRow, PushRow
from registry.server.hub import staging
from registry.server.settings import Settings
from registry.server.storage import references
from registry.server.storage.blobs import BlobStore
from registry.server.storage.states import PushState

_WORD_BYTES = 12
_WORD = re.compile(f"[0-9a-f]{{{2 * _WORD_BYTES}}}")
XORBS_LIMIT = 1024
"""Xorbs of one session: 64 GiB of full ones."""
CLOSED_SECONDS = 900
"""How long the xorbs of a session with several clients stay after the commit of one, if the others send no more."""
_IS_GIVEN_OUT = col(XetSessionRow.is_closed).is_(False)


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


def choose_word(engine: Engine, actor: Actor, name: AdapterName, settings: Settings) -> str:
    """Return the part of a URL that names the actor's session for this repository: the one that lasts, or a new one."""
    of_token = _of_token(actor, name)
    with db.session(engine, write=False) as session:
        has_xorb = exists().where(col(XorbRow.push_id) == col(XetSessionRow.push_id))
        lasting = select(XetSessionRow.word).join(PushRow).where(*of_token, _IS_GIVEN_OUT, has_xorb)
        word = session.exec(lasting.order_by(col(PushRow.created_at).desc()).limit(1)).first()
        if word is None:
            return secrets.token_hex(_WORD_BYTES)
        db.begin_writing(session)
        rows = _lock(session, *of_token, _IS_GIVEN_OUT, col(XetSessionRow.word) == word)
        if not rows:  # a commit came first
            return secrets.token_hex(_WORD_BYTES)
        _change(session, rows, is_shared=True)
        until = db.now() + timedelta(seconds=settings.push_hold_seconds)
        references.extend_pushes(session, [row.push_id for row in rows], until=until)
        return word


def open_push(session: Session, xet: XetSession, size_bytes: int) -> PushRow:
    """Return the open push of a session, or a new one, with space for a xorb. Errors as of a plan of a push."""
    prefix = xet.prefix
    seconds = xet.settings.push_hold_seconds
    row = staging.open_push(session, xet.actor, xet.name, prefix, size_bytes, seconds=seconds)
    number = select(func.count()).select_from(XorbRow).where(col(XorbRow.push_id).between(prefix, prefix + "z"))
    if session.exec(number).one() >= XORBS_LIMIT:
        raise TooLarge("SIZE_INVALID", f"this upload has {XORBS_LIMIT} xorbs, which is the limit")
    values = {"push_id": row.id, "word": xet.word, "has_shard": False, "is_shared": False, "is_closed": False}
    db.insert_new(session, XetSessionRow, values)
    return row


def find_xorbs(session: Session, xet: XetSession, xorbs: Iterable[str]) -> dict[str, XorbRow]:
    """Return those of these xorbs that the session has, by their hash."""
    ids = [row.id for row in staging.find_pushes(session, xet.prefix, xet.name)]
    rows = select(XorbRow).where(any_of(col(XorbRow.push_id), ids), any_of(col(XorbRow.hash), sorted(set(xorbs))))
    return {row.hash: row for row in session.exec(rows)} if ids else {}


def count_bytes(session: Session, xet: XetSession) -> tuple[int, bool]:
    """Return the bytes that the session's xorbs count for in quotas, and whether a shard has made files of them."""
    ids = [row.id for row in staging.find_pushes(session, xet.prefix, xet.name)]
    if not ids:
        return 0, False
    total = select(func.coalesce(func.sum(PushBlobRow.size_bytes), 0)).where(any_of(col(PushBlobRow.push_id), ids))
    used = select(XetSessionRow).where(any_of(col(XetSessionRow.push_id), ids), col(XetSessionRow.has_shard))
    return int(session.exec(total).one()), session.exec(used.limit(1)).first() is not None


def record_shard(session: Session, xet: XetSession) -> None:
    """Record that a shard has made files of a session's xorbs."""
    ids = [row.id for row in staging.find_pushes(session, xet.prefix, xet.name)]
    used = update(XetSessionRow).where(any_of(col(XetSessionRow.push_id), ids))
    session.connection().execute(used.values(has_shard=True))


def end_used(session: Session, actor: Actor, name: AdapterName) -> list[str]:
    """End the actor's sessions for this repository that a shard has used; return the staging keys of their xorbs.

    One with several clients is closed instead: its xorbs stay for a while, and longer if one of them sends more.
    """
    rows = _lock(session, *_of_token(actor, name), col(XetSessionRow.has_shard).is_(True))
    shared = {row.word for row in rows if row.is_shared}
    lasting = [row for row in rows if row.word in shared]
    if lasting:
        _change(session, lasting, is_closed=True)
        soon = db.now() + timedelta(seconds=CLOSED_SECONDS)
        closed = update(PushRow).where(any_of(col(PushRow.id), [row.push_id for row in lasting]))
        session.connection().execute(closed.values(expires_at=soon))
    ids = [row.push_id for row in rows if row.word not in shared]
    if not ids:
        return []
    keys = session.exec(select(PushBlobRow.staging_key).where(any_of(col(PushBlobRow.push_id), ids))).all()
    for table in (XorbRow, XetSessionRow):
        session.connection().execute(delete(table).where(any_of(col(table.push_id), ids)))
    references.end_pushes(session, ids)
    return list(keys)


def _of_token(actor: Actor, name: AdapterName) -> tuple[ColumnElement[bool], ...]:
    """Conditions on `push`: it is open, of this token and for this repository."""
    return (
        col(PushRow.state) == PushState.OPEN, col(PushRow.expires_at) > db.now(),
        col(PushRow.token_id) == actor.token_id,
        col(PushRow.namespace) == name.namespace, col(PushRow.name) == name.name,
    )  # fmt: skip


def _lock(session: Session, *conditions: ColumnElement[bool]) -> list[XetSessionRow]:
    """Lock the rows of sessions, in one order, and return them."""
    rows = select(XetSessionRow).join(PushRow).where(*conditions).order_by(col(XetSessionRow.push_id))
    return list(session.exec(rows.with_for_update(of=XetSessionRow)).all())


def _change(session: Session, rows: Iterable[XetSessionRow], **values: bool) -> None:
    ids = [row.push_id for row in rows]
    session.connection().execute(update(XetSessionRow).where(any_of(col(XetSessionRow.push_id), ids)).values(**values))


def pack_ends(ends: Sequence[int]) -> bytes:
    """Return where each chunk ends, for `XorbRow.chunk_ends`."""
    return struct.pack(f"<{len(ends)}I", *ends)


def locate(xorb: XorbRow, first: int, end: int) -> tuple[int, int]:
    """Return where the run of these chunks starts and ends in a xorb's unpacked bytes; (0, 0) if it has not so many."""
    if end * 4 > len(xorb.chunk_ends):
        return 0, 0
    starts_at, ends_at = (int.from_bytes(xorb.chunk_ends[4 * at - 4 : 4 * at], "little") for at in (first, end))
    return starts_at, ends_at


def delete_xorbs(blobs: BlobStore, keys: Sequence[str]) -> None:
    """Delete the bytes of ended sessions, to which no one has links. Optional: `gc` would do the same later."""
    with contextlib.suppress(Unavailable):
        for key in keys:
            blobs.delete(key)
