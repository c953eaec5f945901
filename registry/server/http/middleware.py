"""`RequestMiddleware`: an outer ASGI layer. It sets the request id and rejects requests that are malformed.

- Every response carries X-Request-Id: the one that the client gave if it is well-formed, else a new one.
- A head of at most `HEAD_LIMIT_BYTES`.
- At most one Host header, which must be a host with or without a port.
- No path and no query holds U+0000, which PostgreSQL cannot store.
- At most one Authorization header, so that no two layers can read different ones.
- A request whose body arrives too slowly is ended (`SlowBodyGuard`).
"""

import asyncio
import json
import re
import secrets
import time
from collections.abc import Iterable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.errors import Invalid, RegistryError, Unavailable
from registry.server.http.problems import problem_response

BODY_BYTES_PER_SECOND = 16 * 2**10
"""The deadline of a body is its size divided by this, and a minute (`Settings.stall_seconds`)."""

HEAD_LIMIT_BYTES = 64 * 2**10
"""Of the path, the query and the headers of a request that is handled. A proxy limits what arrives (docs/deploy.md)."""
_LARGE_HEAD = Invalid("REQUEST_INVALID", f"the head of the request has over {HEAD_LIMIT_BYTES} bytes")
_NUL = Invalid("REQUEST_INVALID", "the path or the query holds the character U+0000")
_BAD_HOST = Invalid("REQUEST_INVALID", "the Host header is not a host")
_SEVERAL_HOSTS = Invalid("REQUEST_INVALID", "the request has several Host headers: send one")
_SEVERAL_TOKENS = Invalid("REQUEST_INVALID", "the request has several Authorization headers: send one")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])?(?::[0-9]{0,5})?\Z")
_REQUEST_ID_HEADERS = (b"x-request-id", b"x-amzn-trace-id")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}\Z")


def has_several_tokens(scope: Scope) -> bool:
    """Whether a request has more than one Authorization header."""
    return _count(scope, b"authorization") > 1


def _head_bytes(scope: Scope) -> int:
    of_headers = sum(len(name) + len(value) for name, value in scope["headers"])
    return of_headers + len(scope["path"]) + len(scope.get("query_string", b""))


def _count(scope: Scope, header: bytes) -> int:
    return [key for key, _ in scope["headers"]].count(header)


def choose_request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the id that the client has given its request if it is well-formed, else a new one.

    Clients of the Hub send theirs as X-Amzn-Trace-Id; that of a load balancer of Amazon is not well-formed.
    """
    ids = {name: value for name, value in headers if name in _REQUEST_ID_HEADERS and _REQUEST_ID.match(value)}
    return next((ids[name] for name in _REQUEST_ID_HEADERS if name in ids), secrets.token_hex(12).encode())


class RequestMiddleware:
    """`stall_seconds`: see `SlowBodyGuard`."""

    def __init__(self, app: ASGIApp, stall_seconds: float = 60) -> None:
        self.app = app
        self._stall_seconds = stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = choose_request_id(scope["headers"])
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        guard = SlowBodyGuard(receive, self._stall_seconds)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"x-request-id", request_id)]
                headers += [(b"connection", b"close")] if guard.stalled or scope["state"].get("unread_body") else []
                message = {**message, "headers": headers}
            await send(message)

        if "\0" in scope["path"] or b"%00" in scope.get("query_string", b""):
            response = await run_in_threadpool(problem_response, Request(scope), _NUL)
            await response(scope, guard, send_with_id)
        elif not all(_HOST.match(value) for key, value in scope["headers"] if key == b"host"):
            await _send_problem(send_with_id, request_id, _BAD_HOST)
        elif _head_bytes(scope) > HEAD_LIMIT_BYTES:
            await _send_problem(send_with_id, request_id, _LARGE_HEAD)
        elif _count(scope, b"host") > 1:
            await _send_problem(send_with_id, request_id, _SEVERAL_HOSTS)
        elif has_several_tokens(scope):
            await _send_problem(send_with_id, request_id, _SEVERAL_TOKENS)
        else:
            await self.app(scope, guard, send_with_id)


class StallCounter:
    """Tells when a body moves too slowly: below `BODY_BYTES_PER_SECOND` for `seconds` of waiting.

    So no body takes longer than its bytes at this rate and `seconds` more: what moved fast buys no time for the rest.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._waited_seconds, self._bytes = seconds, 0.0, 0

    @property
    def remaining_seconds(self) -> float:
        """How long the peer may still keep us waiting."""
        return self._seconds - self._waited_seconds

    def is_stalled(self, waited_seconds: float, size_bytes: int) -> bool:
        """Count what moved in this time; return whether that is too little."""
        self._waited_seconds += waited_seconds
        self._bytes += size_bytes
        if self._bytes < BODY_BYTES_PER_SECOND * self._seconds:
            return self._waited_seconds >= self._seconds
        self._waited_seconds, self._bytes = 0.0, 0
        return False

    def error(self) -> Unavailable:
        """The error for a body that stalled."""
        return Unavailable(
            "BODY_STALLED",
            f"body: less than {BODY_BYTES_PER_SECOND} bytes a second moved for {self._seconds:g} seconds",
            next_step="send the request again; blobs that were received are not requested again",
        )


class SlowBodyGuard:
    """An ASGI `receive` that raises `Unavailable` (BODY_STALLED) if the body arrives too slowly (`StallCounter`).

    Only time spent waiting for the sender counts. A stalled request holds a connection until then, but no thread and no
    transaction.
    """

    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive, self._counter = receive, StallCounter(seconds)
        self._complete = self.stalled = False

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        started_at = time.monotonic()
        try:
            async with asyncio.timeout(self._counter.remaining_seconds):
                message = await self._receive()
        except TimeoutError as e:
            raise self._stall() from e
        self._complete = not message.get("more_body", False)
        is_stalled = self._counter.is_stalled(time.monotonic() - started_at, len(message.get("body", b"")))
        if is_stalled and not self._complete:
            raise self._stall()
        return message

    def _stall(self) -> Unavailable:
        self.stalled = True
        return self._counter.error()


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


async def _send_problem(send: Send, request_id: bytes, error: RegistryError) -> None:
    """Handle a request that never reaches the application. The connection is closed, because its body is unread."""
    body = json.dumps(error.to_problem() | {"status": 400, "request_id": request_id.decode()}).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"x-error-message", error.detail.encode()), (b"connection", b"close")]  # which Hub clients show
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
