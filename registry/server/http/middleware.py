"""`Envelope`: the ASGI layer around every request: its id, and what is refused before the application sees it.

Invariants
- Every answer carries X-Request-Id; a well-formed one of the client is kept, else one is made.
- A Host header is a host, with a port or without: what looks like a URL or a path is refused, though nothing reads it.
- No path and no query holds U+0000, which PostgreSQL cannot store.
- A body that stalls ends its request (`Pace`); nothing waits for ever for a sender.
- A JSON body is read whole before the application sees the request, up to the limit of its route; a blob's never is.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from registry.errors import Invalid, RegistryError, TooLarge, Unavailable
from registry.server.http.slow_body import Pace

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

BODY_LIMIT_BYTES = 2**20
BODY_LIMITS: tuple[tuple[re.Pattern[str], int | None], ...] = (
    (re.compile(r"/pushes/[^/]+/blobs/"), None),  # bytes of a blob: streamed, and limited by what the plan said
    (re.compile(r"/(commit|bases|finish|identity|similarity|pushes)\Z"), 8 * 2**20),
    (re.compile(r"/fleet/nodes/"), 4 * 2**20),  # 2,000 slots with their reasons
    (re.compile(r"/check\Z"), 32 * 2**20),  # holds a safetensors header of up to 16 MiB
)
"""Path pattern → the largest body in bytes, None for no limit here; the first match counts."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Anybody may send any word as a method; what is counted must stay few."""
_NUL = Invalid("REQUEST_INVALID", "the path or the query holds the character U+0000")
_NO_HOST = Invalid("REQUEST_INVALID", "the Host header is no host")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])?(?::[0-9]{0,5})?\Z")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}\Z")


def body_limit(path: str) -> int | None:
    for pattern, limit in BODY_LIMITS:
        if pattern.search(path):
            return limit
    return BODY_LIMIT_BYTES


class Envelope:
    """`counted`: (method, status) → how many answers began."""

    def __init__(
        self, app: Application, stall_seconds: float = 60, counted: Counter[tuple[str, int]] | None = None
    ) -> None:
        self.app = app
        self._stall_seconds = stall_seconds
        self._counted = counted if counted is not None else Counter()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id

        paced = Pace(receive, self._stall_seconds)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = [(b"x-request-id", request_id.encode()), *([(b"connection", b"close")] if paced.stalled else [])]
                message = {**message, "headers": [*message.get("headers", ()), *ours]}
                method = scope["method"] if scope["method"] in METHODS else "other"
                self._counted[method, message["status"]] += 1
            await send(message)

        if "\0" in scope["path"] or b"%00" in scope.get("query_string", b""):
            await _send_problem(send_with_id, request_id, 400, _NUL)
            return
        if not all(_HOST.match(value) for key, value in scope["headers"] if key == b"host"):
            await _send_problem(send_with_id, request_id, 400, _NO_HOST)
            return
        limit = body_limit(scope["path"])
        if limit is not None and scope["method"] not in ("GET", "HEAD"):
            try:
                body = await _whole_body(scope, paced, limit)
            except Unavailable as stalled:
                await _send_problem(send_with_id, request_id, 408, stalled)
                return
            if body is None:
                error = TooLarge("SIZE_INVALID", f"body: over the limit of {limit} bytes for this route (BODY_LIMITS)")
                await _send_problem(send_with_id, request_id, 413, error)
                return
            scope["state"]["body"] = body
            await self.app(scope, _replay(body, receive), send_with_id)
            return
        await self.app(scope, paced, send_with_id)


def _header(scope: Message, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _request_id(scope: Message) -> str:
    given = _header(scope, b"x-request-id")
    return given if _REQUEST_ID.match(given) else secrets.token_hex(12)


async def _whole_body(scope: Message, receive: Receive, limit: int) -> bytes | None:
    """The body, or None once it is known to be over the limit; what follows is then not read."""
    declared = _header(scope, b"content-length")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
        return None
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        if message["type"] != "http.request" or not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


async def _send_problem(send: Send, request_id: str, status: int, error: RegistryError) -> None:
    """The answer of `app.problem`, for what never reaches the application. The connection ends: its body is unread."""
    body = json.dumps(error.to_problem() | {"status": status, "request_id": request_id}).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    closing = [] if status == 408 else [(b"connection", b"close")]  # the envelope says so itself of what stalled
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *closing]})
    await send({"type": "http.response.body", "body": body})
