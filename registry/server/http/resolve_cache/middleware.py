"""`ResolveCache`: the ASGI layer that serves `GET /resolve/…` from memory while that is still right.

    same token and path as before, and nothing was committed since      →  the same bytes, or 304
    something was committed, but the pointer (one statement) is equal   →  the same bytes, or 304
    else                                                                →  the application responds, and that is cached

- The cache repeats only responses that the application gave to this very token. Tokens expire to the second.
- While the database is unavailable, the last response is sent with `Warning: 110` and `X-Registry-Stale`, but none of
  before the newest change of rights, quarantine or deletion that this process knows of.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.api import PREFIX
from registry.errors import RegistryError, Unavailable
from registry.server.access.rate_limits import RequestLimiter
from registry.server.access.sign_in import ActorCache
from registry.server.actors import Actor
from registry.server.catalog.versions import Pointer
from registry.server.database import db
from registry.server.http.changes.freshness import Freshness
from registry.server.http.conditional import etag_matches
from registry.server.http.middleware import choose_request_id, has_several_tokens
from registry.server.http.resolve_cache.pointers import Pointers

ENTRIES_LIMIT = 16_384
BYTES_LIMIT = 64 * 2**20
STALE_LIMIT_SECONDS = 24 * 3600.0
"""How long a response may be sent while the database is unavailable, after it was last known to be right."""
_ROUTE = f"{PREFIX}/resolve/"
LOGGED_ROUTE = f"{_ROUTE}{{namespace}}/{{name}}/{{selector}}"
"""The template that stands for these requests in the log, whether or not they reach the application."""
_RESOLVE = re.compile(rf"{re.escape(_ROUTE)}([^/]+)/([^/]+)/([^/]+)\Z")
_NOT_CACHED = frozenset({b"x-request-id", b"content-length", b"audit-checkpoint"})

Key = tuple[bytes, str]
Header = tuple[bytes, bytes]


@dataclass(slots=True)
class Entry:
    """A response, the token it was sent to, and what the database held then."""

    body: bytes
    etag: bytes
    headers: list[Header]
    token_id: str
    expires_at: float
    pointer: Pointer
    stamp: object
    verified_at: float
    identity: str = ""


class ResolveCache:
    """`extra_headers` returns headers that are added to every cached response."""

    def __init__(
        self,
        app: ASGIApp,
        freshness: Freshness,
        pointers: Pointers,
        actors: ActorCache,
        limiter: RequestLimiter,
        extra_headers: Callable[[], Mapping[str, str]],
    ) -> None:
        self.app = app
        self._freshness, self._pointers = freshness, pointers
        self._actors, self._limiter, self._extra_headers = actors, limiter, extra_headers
        self._entries: dict[Key, Entry] = {}
        self._bytes = 0
        self._shared_stamp: tuple[object] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_resolve = scope["type"] == "http" and scope["method"] == "GET" and scope["path"].startswith(_ROUTE)
        if is_resolve and not scope["query_string"] and not has_several_tokens(scope):
            await self._resolve(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _resolve(self, scope: Scope, receive: Receive, send: Send) -> None:
        secret, condition, request_id = _read_headers(scope)
        state = scope.setdefault("state", {})
        state["route"] = LOGGED_ROUTE
        key = (hashlib.sha256(secret).digest(), scope["path"])
        entry = self._entries.get(key)
        if entry is not None and entry.expires_at > db.now().timestamp():
            try:
                state["log_actor"] = entry.identity
                if await self._is_right(entry, scope["path"]) and self._may_request(entry):
                    await self._send_entry(send, entry, condition, request_id)
                    return
            except Unavailable:
                if await self._send_stale(send, entry, condition, request_id):
                    return
        await self._ask_application(scope, receive, send, key, secret, condition)

    def _stamp(self) -> object:
        """Return the current stamp, read once for all requests of a pass of the event loop.

        They arrived before this pass, and what arrives later is handled after the call that forgets the stamp.
        """
        if self._shared_stamp is None:
            asyncio.get_running_loop().call_soon(self._forget_stamp)
            self._shared_stamp = (self._freshness.stamp(),)
        return self._shared_stamp[0]

    def _forget_stamp(self) -> None:
        self._shared_stamp = None

    async def _is_right(self, entry: Entry, path: str) -> bool:
        stamp = self._stamp()
        if stamp is not None and stamp == entry.stamp:
            return True
        pointer = await self._pointers.read(path.removeprefix(_ROUTE).split("/"))
        if pointer != entry.pointer:
            self._note_access(pointer)
            return False
        entry.stamp, entry.verified_at = stamp, time.monotonic()
        return True

    def _may_request(self, entry: Entry) -> bool:
        """Whether the token is below its rate limit. If not, the application gives the error."""
        try:
            self._limiter.take(entry.token_id)
        except RegistryError:
            return False
        return True

    async def _ask_application(
        self, scope: Scope, receive: Receive, send: Send, key: Key, secret: bytes, condition: bytes
    ) -> None:
        """Let the application respond, and cache its response."""
        try:
            stamp = self._freshness.stamp()
        except Unavailable:
            stamp = None  # the application finds out by itself and gives the error
        if not _RESOLVE.match(scope["path"]) or scope.get("raw_path", b"").count(b"%"):
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        response = _RecordedResponse()
        headers = [(name, value) for name, value in scope["headers"] if name != b"if-none-match"]
        await self.app({**scope, "headers": headers}, receive, response.record)
        entry = self._entries.get(key)
        if response.status == 503 and entry is not None:
            if await self._send_stale(send, entry, condition, response.request_id):
                return
        elif response.status == 200 and "pointer" in state:
            self._store(key, response, secret, state["pointer"], stamp, scope["app"].state.trusted)
        else:
            self._remove(key)
        await response.send(send, condition)

    def _store(
        self,
        key: Key,
        response: _RecordedResponse,
        secret: bytes,
        pointer: Pointer,
        stamp: object,
        trusted: Actor | None,
    ) -> None:
        """Cache a response. One without a secret is cached only if such requests have a trusted actor."""
        actor = self._actors.get(secret.decode("latin-1")) if secret else None
        if actor is None and (secret or trusted is None):
            return  # a rotated secret that is still valid
        if actor is not None and actor.epoch != pointer.access:
            return  # a right that changes at this moment
        expires_at = actor.expires_at.timestamp() if actor and actor.expires_at else float("inf")
        token_id = actor.token_id if actor else ""
        headers = [(name, value) for name, value in response.headers if name not in _NOT_CACHED]
        self._note_access(pointer)
        self._remove(key)
        self._entries[key] = Entry(
            response.body,
            response.etag,
            headers,
            token_id,
            expires_at,
            pointer,
            stamp,
            time.monotonic(),
            actor.identity if actor else "",
        )
        self._bytes += len(response.body)
        while len(self._entries) > ENTRIES_LIMIT or self._bytes > BYTES_LIMIT:
            self._remove(next(iter(self._entries)))

    def _note_access(self, pointer: Pointer | None) -> None:
        if pointer is not None:
            self._freshness.see_access(pointer.access)

    def _remove(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= len(entry.body)

    async def _send_stale(self, send: Send, entry: Entry, condition: bytes, request_id: bytes) -> bool:
        age = time.monotonic() - entry.verified_at
        if age > STALE_LIMIT_SECONDS or entry.expires_at <= db.now().timestamp():
            return False
        if entry.pointer.access < self._freshness.access:
            return False
        warning = [(b"warning", b'110 - "Response is Stale"'), (b"x-registry-stale", str(int(age)).encode())]
        await self._send_entry(send, entry, condition, request_id, warning)
        return True

    async def _send_entry(
        self, send: Send, entry: Entry, condition: bytes, request_id: bytes, warning: list[Header] | None = None
    ) -> None:
        extra = [(name.lower().encode(), value.encode()) for name, value in self._extra_headers().items()]
        headers = [*entry.headers, *extra, *(warning or ()), (b"x-request-id", request_id)]
        await _send(send, 200, headers, entry.body, entry.etag, condition)


class _RecordedResponse:
    """A response of the application, recorded before it is sent."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[Header] = []
        self.body = b""

    def _header(self, name: bytes) -> bytes:
        return next((value for key, value in self.headers if key == name), b"")

    @property
    def request_id(self) -> bytes:
        return self._header(b"x-request-id")

    @property
    def etag(self) -> bytes:
        return self._header(b"etag")

    async def record(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
        else:
            self.body += message.get("body", b"")

    async def send(self, send: Send, condition: bytes) -> None:
        if self.status:
            headers = [(name, value) for name, value in self.headers if name != b"content-length"]
            await _send(send, self.status, headers, self.body, self.etag, condition)


async def _send(send: Send, status: int, headers: list[Header], body: bytes, etag: bytes, condition: bytes) -> None:
    """Send a response, or 304 if the client has these bytes."""
    if status == 200 and condition and etag_matches(condition.decode("latin-1"), etag.decode("latin-1")):
        status, body = 304, b""
        headers = [(name, value) for name, value in headers if name != b"content-type"]
    else:
        headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _read_headers(scope: Scope) -> tuple[bytes, bytes, bytes]:
    """Return the secret, If-None-Match and the id of the request; the first two are empty if absent.

    A header of another scheme stands in full, behind its name, so that it never equals a secret in the cache.
    """
    authorization = condition = b""
    for name, value in scope["headers"]:
        if name == b"authorization":
            authorization = value
        elif name == b"if-none-match":
            condition = value
    scheme, _, secret = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        secret = secret.strip()
    elif authorization:
        secret = b"authorization: " + authorization
    return secret, condition, choose_request_id(scope["headers"])
