"""Request bodies that are read whole before a route runs: after a look at the token, and within a budget.

- Without a valid token at most `UNTRUSTED_BYTES` are read, and nothing of a body that declares more.
- Larger bodies count towards a budget of the process and of their token until the request is answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive

from registry.errors import TooLarge, Unavailable
from registry.server.http.request_actor import look_up_token

BODY_LIMIT_BYTES = 2**20
UNTRUSTED_BYTES = 64 * 2**10
PROCESS_BYTES = 256 * 2**20
TOKEN_BYTES = 40 * 2**20
Endpoint = TypeVar("Endpoint", bound=Callable[..., object])


def limit_body(size_bytes: int | None) -> Callable[[Endpoint], Endpoint]:
    """Set the largest body of a route, instead of `BODY_LIMIT_BYTES`. None: the route streams its body."""

    def decorate(endpoint: Endpoint) -> Endpoint:
        endpoint.body_limit_bytes = size_bytes  # type: ignore[attr-defined]
        return endpoint

    return decorate


class BodyBudget:
    """The bytes of bodies in memory. Used on the event loop only."""

    def __init__(self) -> None:
        self._total_bytes = 0
        self._bytes_by_token: Counter[str] = Counter()

    @contextmanager
    def reserve(self, token_id: str, size_bytes: int) -> Iterator[None]:
        """Reserve memory for a body. `Unavailable` (TRY_LATER) if the budget is used up."""
        if self._total_bytes + size_bytes > PROCESS_BYTES or self._bytes_by_token[token_id] + size_bytes > TOKEN_BYTES:
            raise Unavailable("TRY_LATER", "body: other requests use all memory for bodies", retry_after_seconds=1)
        self._total_bytes += size_bytes
        self._bytes_by_token[token_id] += size_bytes
        try:
            yield
        finally:
            self._total_bytes -= size_bytes
            self._bytes_by_token[token_id] -= size_bytes
            if not self._bytes_by_token[token_id]:
                del self._bytes_by_token[token_id]


@asynccontextmanager
async def read_body(request: Request, limit_bytes: int) -> AsyncIterator[Request]:
    """Yield the request with its whole body in `state.body`. `TooLarge` (SIZE_INVALID), `Unauthenticated`.

    `state.unread_body` is true until the body is complete: the connection cannot be used again then.
    """
    request.state.unread_body = True
    declared = request.headers.get("content-length", "")
    expected_bytes = int(declared[:20]) if declared.isascii() and declared.isdigit() else 0
    body = bytearray()
    with ExitStack() as reservation:
        if expected_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        if expected_bytes > UNTRUSTED_BYTES:
            await _admit(request, expected_bytes, reservation)
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit_bytes:
                raise _too_large(limit_bytes)
            if len(body) > UNTRUSTED_BYTES and expected_bytes <= UNTRUSTED_BYTES:
                expected_bytes = limit_bytes
                await _admit(request, expected_bytes, reservation)
        request.state.unread_body = False
        request.state.body = bytes(body)
        yield Request(request.scope, _replay(request.state.body, request.receive))


async def _admit(request: Request, size_bytes: int, reservation: ExitStack) -> None:
    token_id = await run_in_threadpool(look_up_token, request)
    budget: BodyBudget = request.app.state.body_budget
    reservation.enter_context(budget.reserve(token_id, size_bytes))


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge("SIZE_INVALID", f"body: over the limit of {limit_bytes} bytes for this route")


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
