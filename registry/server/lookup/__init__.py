"""`Lookup`: the ASGI layer in front of the application that answers the hot look-up from what was answered before.

    answered to this token before, and nothing was committed since   →  the same bytes, or 304
    something was committed: ask for the pointer (one statement)     →  it is as it was: the same bytes, or 304
    it is not, or this was never answered                            →  the application answers; its answer is kept

Invariants
- Nothing is decided here: an answer was given by the application, to this very token, and is given again only while the
  pointer and the state of access that the application read are still what the database holds (`freshness`, `pointer`).
- An expired token is expired to the second. The pace of a token counts kept answers, too.
- While the database is away, the last good answer is given with `Warning: 110` and `X-Registry-Stale`, to whom it was
  given before and to nobody else.
- Memory is bounded: the oldest answers go first.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from registry.api import PREFIX
from registry.errors import RegistryError, Unavailable
from registry.server.access import sign_in
from registry.server.access.rate_limits import RequestLimiter
from registry.server.catalog.versions import Pointer
from registry.server.http.middleware import Application, Message, Receive, Send
from registry.server.lookup.freshness import Freshness
from registry.server.lookup.pointer import Pointers

ENTRIES_LIMIT = 16_384
BYTES_LIMIT = 64 * 2**20
STALE_LIMIT_SECONDS = 24 * 3600.0
"""For so long after it was last known to be right an answer is given while the database is away."""
_ROUTE = f"{PREFIX}/resolve/"
_RESOLVE = re.compile(rf"{re.escape(_ROUTE)}([^/]+)/([^/]+)/([^/]+)\Z")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}\Z")
_NOT_KEPT = frozenset({b"x-request-id", b"content-length", b"audit-checkpoint"})
_AWAY = 503

Key = tuple[bytes, str]
Header = tuple[bytes, bytes]


@dataclass(slots=True)
class Kept:
    """One answer, whose it is, and what the database held when it was given."""

    body: bytes
    etag: bytes
    headers: list[Header]
    token_id: str
    expires_at: float
    pointer: Pointer
    stamp: object
    right_at: float


class Lookup:
    def __init__(
        self,
        app: Application,
        freshness: Freshness,
        pointers: Pointers,
        memory: sign_in.ActorCache,
        pace: RequestLimiter,
        told: Callable[[], Mapping[str, str]],
    ) -> None:
        self.app = app
        self._freshness, self._pointers = freshness, pointers
        self._memory, self._pace, self._told = memory, pace, told
        self._kept: dict[Key, Kept] = {}
        self._bytes = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["method"] != "GET":
            with self._freshness.disturbed():  # whatever this request writes, nobody is told the old after its answer
                await self.app(scope, receive, send)
        elif scope["path"].startswith(_ROUTE) and not scope["query_string"]:
            await self._resolve(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _resolve(self, scope: Message, receive: Receive, send: Send) -> None:
        secret, condition, request_id = _asked(scope)
        key = (hashlib.sha256(secret).digest(), scope["path"])
        kept = self._kept.get(key)
        if kept is not None and kept.expires_at > time.time():
            try:
                if await self._still_right(kept, scope["path"]) and self._may_ask(kept):
                    await self._tell(send, kept, condition, request_id)
                    return
            except Unavailable:
                if await self._tell_stale(send, kept, condition, request_id):
                    return
        await self._ask(scope, receive, send, key, secret, condition)

    async def _still_right(self, kept: Kept, path: str) -> bool:
        stamp = self._freshness.stamp()
        if stamp is not None and stamp == kept.stamp:
            return True
        found = await self._pointers.now(path.removeprefix(_ROUTE).split("/"))
        if found != kept.pointer:
            return False
        kept.stamp, kept.right_at = stamp, time.monotonic()
        return True

    def _may_ask(self, kept: Kept) -> bool:
        """Whether the token has requests left; if not, the application says so in its own words."""
        try:
            self._pace.take(kept.token_id)
        except RegistryError:
            return False
        return True

    async def _ask(
        self, scope: Message, receive: Receive, send: Send, key: Key, secret: bytes, condition: bytes
    ) -> None:
        """Let the application answer, and keep what it says."""
        try:
            stamp = self._freshness.stamp()
        except Unavailable:
            stamp = None  # the application finds out by itself, and says so in its own words
        if not _RESOLVE.match(scope["path"]) or scope.get("raw_path", b"").count(b"%"):
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        answer = _Answer()
        whole = [(name, value) for name, value in scope["headers"] if name != b"if-none-match"]
        await self.app({**scope, "headers": whole}, receive, answer.take)
        kept = self._kept.get(key)
        if answer.status == _AWAY and kept is not None:
            if await self._tell_stale(send, kept, condition, answer.request_id):
                return
        elif answer.status == 200 and "pointer" in state:
            self._keep(key, answer, secret, state["pointer"], stamp)
        else:
            self._forget(key)
        await answer.send(send, condition)

    def _keep(self, key: Key, answer: _Answer, secret: bytes, pointer: Pointer, stamp: object) -> None:
        actor = self._memory.get(secret.decode("latin-1")) if secret else None
        if secret and (actor is None or actor.epoch != pointer.access):
            return  # an old secret in its days of grace, or access that changes this moment: ask again next time
        expires_at = actor.expires_at.timestamp() if actor and actor.expires_at else float("inf")
        headers = [(name, value) for name, value in answer.headers if name not in _NOT_KEPT]
        etag = next(value for name, value in headers if name == b"etag")
        self._forget(key)
        self._kept[key] = Kept(
            answer.body, etag, headers, actor.token_id if actor else "", expires_at, pointer, stamp, time.monotonic()
        )
        self._bytes += len(answer.body)
        while len(self._kept) > ENTRIES_LIMIT or self._bytes > BYTES_LIMIT:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: Key) -> None:
        gone = self._kept.pop(key, None)
        if gone is not None:
            self._bytes -= len(gone.body)

    async def _tell_stale(self, send: Send, kept: Kept, condition: bytes, request_id: bytes) -> bool:
        age = time.monotonic() - kept.right_at
        if age > STALE_LIMIT_SECONDS or kept.expires_at <= time.time():
            return False
        marks = [(b"warning", b'110 - "Response is Stale"'), (b"x-registry-stale", str(int(age)).encode())]
        await self._tell(send, kept, condition, request_id, marks)
        return True

    async def _tell(
        self, send: Send, kept: Kept, condition: bytes, request_id: bytes, marks: list[Header] | None = None
    ) -> None:
        told = [(name.lower().encode(), value.encode()) for name, value in self._told().items()]
        headers = [*kept.headers, *told, *(marks or ()), (b"x-request-id", request_id)]
        await _send(send, 200, headers, kept.body, kept.etag, condition)


class _Answer:
    """An answer of the application, held until it is known whether it is the one to give."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[Header] = []
        self.body = b""

    @property
    def request_id(self) -> bytes:
        return next((value for name, value in self.headers if name == b"x-request-id"), b"")

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
        else:
            self.body += message.get("body", b"")

    async def send(self, send: Send, condition: bytes) -> None:
        etag = next((value for name, value in self.headers if name == b"etag"), b"")
        if self.status:
            headers = [(name, value) for name, value in self.headers if name != b"content-length"]
            await _send(send, self.status, headers, self.body, etag, condition)


async def _send(send: Send, status: int, headers: list[Header], body: bytes, etag: bytes, condition: bytes) -> None:
    """The answer, or 304 when the client has these very bytes."""
    if status == 200 and condition and etag in (tag.strip().removeprefix(b"W/") for tag in condition.split(b",")):
        status, body = 304, b""
        headers = [(name, value) for name, value in headers if name != b"content-type"]
    else:
        headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _asked(scope: Message) -> tuple[bytes, bytes, bytes]:
    """The secret, the If-None-Match and the request id of a request; empty ones where it says nothing."""
    authorization = condition = request_id = b""
    for name, value in scope["headers"]:
        if name == b"authorization":
            authorization = value
        elif name == b"if-none-match":
            condition = value
        elif name == b"x-request-id":
            request_id = value
    scheme, _, secret = authorization.partition(b" ")
    secret = secret.strip() if scheme.lower() == b"bearer" else authorization
    return secret, condition, request_id if _REQUEST_ID.match(request_id) else secrets.token_hex(12).encode()
