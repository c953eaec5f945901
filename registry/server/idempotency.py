"""Twice means once: the answer to a mutation is kept under the caller's key, in the transaction of its effect.

Invariants
- A key belongs to a token. The same key with the same request has the first answer; with another one it is `Conflict`.
- A key is claimed before the effect by a row that others wait for, so of two equal requests that race one acts.
- A mutation that fails keeps nothing: its key may be used again. So does one that answers 204.
- An answer that says `no-store` (it holds a secret) is not kept: the same request again is refused, not done twice.

Example
    >>> idempotency.begin(session, asked) is None                  # nobody asked before: act, then
    True
    >>> idempotency.keep(session, asked, Answer(201, "", body))
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session

from registry.errors import Conflict, Invalid, Unavailable
from registry.server import db
from registry.server.tables import IdempotencyRow

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


def begin(session: Session, asked: Asked) -> Answer | None:
    """Claim the key before the first change; the answer instead, if this request was done before."""
    claim: dict[str, Any] = {"token_id": asked.token_id, "key": asked.key, "request_sha256": asked.request_sha256}
    if db.insert_new(session, IdempotencyRow, claim | {"status": _CLAIMED, "answer": "", "created_at": db.now()}):
        return None
    answer = find(session, asked)
    if answer is None:  # pruned between the two statements
        raise Unavailable("TRY_LATER", "an old answer to this key was just forgotten", retry_after_seconds=1)
    return answer


def find(session: Session, asked: Asked) -> Answer | None:
    """The answer that this request had, or None. `Conflict` (IDEMPOTENCY_REUSED) if the key had another request."""
    row = session.get(IdempotencyRow, (asked.token_id, asked.key), populate_existing=True)
    if row is None:
        return None
    if row.request_sha256 != asked.request_sha256:
        raise Conflict(
            "IDEMPOTENCY_REUSED",
            f"Idempotency-Key {asked.key!r} came before with another request",
            next_step="use a new key for a new request",
        )
    kept = json.loads(row.answer)
    return Answer(row.status, kept["etag"], kept["body"])


def keep(session: Session, asked: Asked, answer: Answer) -> Answer | None:
    """Keep the answer with the effect. Returns another one when an equal request was faster: then undo this one.

    An empty answer (204) forgets the key.
    """
    row = session.get(IdempotencyRow, (asked.token_id, asked.key), populate_existing=True)
    if row is not None and row.status != _CLAIMED:
        return find(session, asked)
    if answer.status == 204:
        if row is not None:
            session.delete(row)
        return None
    if row is None and (earlier := begin(session, asked)) is not None:
        return earlier
    row = session.get_one(IdempotencyRow, (asked.token_id, asked.key))
    row.status, row.answer = answer.status, json.dumps({"etag": answer.etag, "body": answer.body})
    session.add(row)
    return None


def given_again(answer: Answer) -> str:
    """The body of an answer that is given again. `Conflict` when it was not kept."""
    if answer.body is None:
        raise Conflict(
            "IDEMPOTENCY_REUSED",
            "this request was done already, and its answer held a secret that is shown once",
            next_step="undo what it made (`adapter token list`), and ask again with a new key",
        )
    return answer.body
