"""Twice means once: the answer to a mutation is kept under the caller's key, in the transaction of its effect.

Invariants
- A key belongs to a token. The same key with the same request has the first answer; with another one it is `Conflict`.
- A key is claimed before the effect by a row that others wait for, so of two equal requests that race one acts.
- A mutation that fails keeps nothing: its key may be used again. So does one that answers 204.
- An answer that says `no-store` (it holds a secret) is not kept: the same request again is refused, not done twice.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, select, update

from registry.errors import Conflict, Invalid, Unavailable
from registry.server.database import db
from registry.server.database.models import IdempotencyRow

_ROW: Table = IdempotencyRow.__table__  # type: ignore[attr-defined]
_KEY = re.compile(r"[\x21-\x7e]{1,200}\Z")
_CLAIMED = 0
"""The status of a row whose answer is still to come; nobody but its own transaction sees it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Which request this is: whose, under which key, and the hash of what it asks."""

    token_id: str
    key: str
    request_sha256: str

    @classmethod
    def of(cls, token_id: str, key: str, request: Iterable[bytes]) -> Asked:
        """`Invalid` for a key that is not 1 to 200 visible ASCII characters. `request` is all that makes it another."""
        if not _KEY.match(key):
            raise Invalid("REQUEST_INVALID", "Idempotency-Key: not 1 to 200 visible ASCII characters")
        hasher = hashlib.sha256()
        for part in request:
            hasher.update(len(part).to_bytes(8, "big") + part)
        return cls(token_id, key, hasher.hexdigest())


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered. `body` is None when it was not to be kept."""

    status: int
    etag: str
    body: str | None


def begin(connection: Connection, asked: Asked) -> Answer | None:
    """Claim the key before the first change; the answer instead, if this request was done before."""
    claim: dict[str, Any] = {"token_id": asked.token_id, "key": asked.key, "request_sha256": asked.request_sha256}
    if db.insert_new(connection, IdempotencyRow, claim | {"status": _CLAIMED, "answer": "", "created_at": db.now()}):
        return None
    answer = find(connection, asked)
    if answer is None:  # pruned between the two statements
        raise Unavailable("TRY_LATER", "an old answer to this key was just forgotten", retry_after_seconds=1)
    return answer


def find(connection: Connection, asked: Asked) -> Answer | None:
    """The answer that this request had, or None. `Conflict` (IDEMPOTENCY_REUSED) if the key had another request."""
    wanted = select(_ROW.c.request_sha256, _ROW.c.status, _ROW.c.answer).where(_is(asked))
    row = connection.execute(wanted).first()
    if row is None or (row.status == _CLAIMED and row.request_sha256 == asked.request_sha256):
        return None
    if row.request_sha256 != asked.request_sha256:
        raise Conflict(
            "IDEMPOTENCY_REUSED",
            f"Idempotency-Key {asked.key!r} came before with another request",
            next_step="use a new key for a new request",
        )
    kept = json.loads(row.answer)
    return Answer(row.status, kept["etag"], kept["body"])


def keep(connection: Connection, asked: Asked, answer: Answer, *, begun: bool = True) -> Answer | None:
    """Keep the answer with the effect. Returns another one when an equal request was faster: then undo this one.

    An empty answer (204) forgets the key. `begun`: it was claimed by `begin`.
    """
    if answer.status == 204:
        connection.execute(delete(_ROW).where(_is(asked), _ROW.c.status == _CLAIMED))
        return None
    values = {"status": answer.status, "answer": json.dumps({"etag": answer.etag, "body": answer.body})}
    if begun:
        kept = update(_ROW).where(_is(asked), _ROW.c.status == _CLAIMED).values(**values)
        if connection.execute(kept).rowcount:
            return None
    claim = {"token_id": asked.token_id, "key": asked.key, "request_sha256": asked.request_sha256}
    if db.insert_new(connection, IdempotencyRow, claim | values | {"created_at": db.now()}):
        return None
    return find(connection, asked)


def _is(asked: Asked) -> ColumnElement[bool]:
    return and_(_ROW.c.token_id == asked.token_id, _ROW.c.key == asked.key)


def given_again(answer: Answer) -> str:
    """The body of an answer that is given again. `Conflict` when it was not kept."""
    if answer.body is None:
        raise Conflict(
            "IDEMPOTENCY_REUSED",
            "this request was done already, and its answer held a secret that is shown once",
            next_step="undo what it made (`adapter token list`), and ask again with a new key",
        )
    return answer.body
