"""Idempotency keys: the response to a mutation is stored under the client's key, in the transaction of its effect.

- A key belongs to a token. The same request with the same key gets the first response; another request is a `Conflict`.
- The key is claimed by a row before the effect. Other requests wait for that row, so of two equal ones only one acts.
- A mutation that fails or responds with 204 stores nothing. A response with `no-store` contains a secret and is not
  stored: the same request again is refused.
- Planning a push and uploading take no key: they may be repeated, and links must not be given twice.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Self

from fastapi import Request, Response
from sqlalchemy import ColumnElement, Connection, Table, and_, delete, select, update
from sqlmodel import Session

from registry.errors import Conflict, Invalid, Unavailable
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.models import IdempotencyRow

HEADER = "Idempotency-Key"
SAFE_METHODS = frozenset({"GET", "HEAD"})
_ROW: Table = IdempotencyRow.__table__  # type: ignore[attr-defined]
_KEY = re.compile(r"[\x21-\x7e]{1,200}\Z")
_CLAIMED = 0
"""The status of a row whose response is still missing. Only its own transaction sees it."""


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """A request with a key: its token, its key, and the hash of what it requests."""

    token_id: str
    key: str
    request_sha256: str

    @classmethod
    def of(cls, token_id: str, key: str, parts: Iterable[bytes]) -> Self:
        """Hash the parts of a request. `Invalid` for a key that is not 1 to 200 visible ASCII characters."""
        if not _KEY.match(key):
            raise Invalid("REQUEST_INVALID", "Idempotency-Key: must be 1 to 200 visible ASCII characters")
        hasher = hashlib.sha256()
        for part in parts:
            hasher.update(len(part).to_bytes(8, "big") + part)
        return cls(token_id, key, hasher.hexdigest())


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """The response to a request. `body` is None if it contained a secret."""

    status: int
    etag: str
    body: str | None


Lookup = Callable[[Connection, KeyedRequest], StoredResponse | None]


def claim(connection: Connection, request: KeyedRequest) -> StoredResponse | None:
    """Claim the key before the first change, or return the response that this request had."""
    values = asdict(request) | {"status": _CLAIMED, "response": "", "created_at": db.now()}
    if db.insert_new(connection, IdempotencyRow, values):
        return None
    response = find(connection, request)
    if response is None:  # deleted between the two statements
        raise Unavailable("TRY_LATER", "an old response to this key was just deleted", retry_after_seconds=1)
    return response


def find(connection: Connection, request: KeyedRequest) -> StoredResponse | None:
    """Return the response that this request had. `Conflict` (IDEMPOTENCY_REUSED) if the key had another request."""
    statement = select(_ROW.c.request_sha256, _ROW.c.status, _ROW.c.response).where(_has_key(request))
    row = connection.execute(statement).first()
    if row is None or (row.status == _CLAIMED and row.request_sha256 == request.request_sha256):
        return None
    if row.request_sha256 != request.request_sha256:
        raise Conflict(
            "IDEMPOTENCY_REUSED",
            f"Idempotency-Key {request.key!r} was used for another request",
            next_step="use a new key for a new request",
        )
    document = json.loads(row.response)
    return StoredResponse(row.status, document["etag"], document["body"])


def store(
    connection: Connection, request: KeyedRequest, response: StoredResponse, *, claimed: bool = True
) -> StoredResponse | None:
    """Store the response with the effect. Returns another response if an equal request was faster: then roll back.

    An empty response (204) releases the key. `claimed`: the key was claimed by `claim`.
    """
    if response.status == 204:
        connection.execute(delete(_ROW).where(_has_key(request), _ROW.c.status == _CLAIMED))
        return None
    values = {"status": response.status, "response": json.dumps({"etag": response.etag, "body": response.body})}
    if claimed:
        statement = update(_ROW).where(_has_key(request), _ROW.c.status == _CLAIMED).values(**values)
        if connection.execute(statement).rowcount:
            return None
    if db.insert_new(connection, IdempotencyRow, asdict(request) | values | {"created_at": db.now()}):
        return None
    return find(connection, request)


def _has_key(request: KeyedRequest) -> ColumnElement[bool]:
    return and_(_ROW.c.token_id == request.token_id, _ROW.c.key == request.key)


def claim_once(session: Session, token_id: str, key: str) -> None:
    """Claim the key of a form whose response shows a secret. `Conflict` (IDEMPOTENCY_REUSED) if it was sent before."""
    keyed, connection = KeyedRequest.of(token_id, key, []), session.connection()
    if claim(connection, keyed) is not None:
        raise Conflict(
            "IDEMPOTENCY_REUSED",
            "this form was sent before, and the secret that it made was shown then",
            next_step="open the page again: if the secret is lost, revoke or rotate it there",
        )
    store(connection, keyed, StoredResponse(200, "", None))


class RepeatedRequest(Exception):
    """Ends a request that was processed before."""

    def __init__(self, status: int, etag: str, body: str) -> None:
        super().__init__("processed before")
        self.status, self.etag, self.body = status, etag, body

    def response(self) -> Response:
        """The response that the request had."""
        headers = {"Idempotency-Replayed": "true"} | ({"ETag": self.etag} if self.etag else {})
        return Response(self.body, self.status, headers, media_type="application/json")


def has_key(request: Request) -> bool:
    """Whether the request is a mutation with a key."""
    return request.method not in SAFE_METHODS and HEADER in request.headers


def look_up_key(request: Request, session: Session, actor: Actor, look_up: Lookup) -> None:
    """Look up the key when the route begins to work. Until then the request holds no connection.

    By `claim`, before anything is written, or by `find`, in a route that reads for long before it writes: it claims the
    key with its response. Raises `RepeatedRequest`.
    """
    key = request.headers[HEADER]
    parts = [request.method, request.url.path, request.url.query, request.headers.get("if-match", "-")]
    keyed = KeyedRequest.of(actor.token_id, key, [*(part.encode() for part in parts), request.state.body])
    request.state.keyed_request = (session, keyed, look_up is claim)
    db.before_first_statement(session, lambda connection: _raise_repeated(look_up(connection, keyed)))


def store_no_response(request: Request) -> None:
    """Do not store the response of this request: it holds an error, which may pass. Its effect may be repeated."""
    if hasattr(request.state, "keyed_request"):
        del request.state.keyed_request


def store_response(request: Request, response: Response) -> None:
    """Store the response of a request with a key. Raises `RepeatedRequest` if an equal request was faster."""
    if not hasattr(request.state, "keyed_request"):
        return
    session, keyed, claimed = request.state.keyed_request
    secret = "no-store" in response.headers.get("cache-control", "")
    body = None if secret else bytes(response.body).decode()
    stored = StoredResponse(response.status_code, response.headers.get("etag", ""), body)
    _raise_repeated(store(session.connection(), keyed, stored, claimed=claimed))


def _raise_repeated(response: StoredResponse | None) -> None:
    if response is None:
        return
    if response.body is None:
        raise Conflict(
            "IDEMPOTENCY_REUSED",
            "this request was processed already, and its response contained a secret that is shown once",
            next_step="undo its effect (`adapter token list`), and send the request with a new key",
        )
    raise RepeatedRequest(response.status, response.etag, response.body)
