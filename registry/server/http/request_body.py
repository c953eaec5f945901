"""Request bodies that are read whole before a route runs: after a look at the token, and within a budget.

- A request without a token is refused unread. At most `UNTRUSTED_BYTES` are read before the token is looked up.
- Until then bytes count towards a small budget of the process, afterwards towards those of the token's subject and of
  its namespaces: who administers a namespace can issue tokens of as many subjects as they like.
- What counts is what has arrived, until the response is sent. A declared length reserves nothing.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import IO, TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive

from registry.errors import TooLarge, Unavailable
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.http.request_actor import look_up_actor, read_network, require_secret
from registry.strict.json import count_values, has_more_values

BODY_LIMIT_BYTES = 2**20
UNTRUSTED_BYTES = 64 * 2**10
PROCESS_BYTES = 256 * 2**20
SUBJECT_BYTES = 40 * 2**20
NAMESPACE_BYTES = 80 * 2**20
"""Bytes for all tokens that are limited to namespaces of which the first one by name is the same."""
SPOOL_BYTES = 2**20
"""Received chunks are collected to about this size before they are written to disk."""
DISK_BYTES = 16 * 2**30
"""Bytes of all bodies that wait on disk; a quarter of them for one subject, half for one namespace."""
UNCHECKED_BYTES = 16 * 2**20
"""Bytes of all bodies whose tokens are not looked up yet. Half is for routes without a token, half for all others."""
VALUES_LIMIT = 20_000
"""Commas and opening brackets of a JSON body, which are counted before it is parsed: each takes some 200 bytes."""
LIST_VALUES_LIMIT = 70_000
"""The same of a body about many items."""
MANY_VALUES_LIMIT = 1_500_000
"""The same of a push, of the modules of a base and of a report."""
Endpoint = TypeVar("Endpoint", bound=Callable[..., object])
Owner = tuple[str, str]
"""Who sends a body, and the group that the sender belongs to (empty: none)."""


def limit_body(size_bytes: int | None, *, values: int = VALUES_LIMIT) -> Callable[[Endpoint], Endpoint]:
    """Set the largest body of a route, instead of `BODY_LIMIT_BYTES`. None: the route streams its body."""

    def decorate(endpoint: Endpoint) -> Endpoint:
        endpoint.body_limit_bytes = size_bytes  # type: ignore[attr-defined]
        endpoint.values_limit = values  # type: ignore[attr-defined]
        return endpoint

    return decorate


class BodyBudget:
    """The bytes of bodies in memory or on disk: in total, by owner, by group of owners. For the event loop only."""

    def __init__(self, total_bytes: int, owner_bytes: int, group_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.owner_bytes = owner_bytes
        self.group_bytes = group_bytes
        self.used_bytes = 0
        self._bytes_by_owner: Counter[str] = Counter()

    def has_space(self, owner: Owner, size_bytes: int) -> bool:
        """Whether so many more bytes are within the budget."""
        owner_bytes, group_bytes = (self._bytes_by_owner[part] + size_bytes for part in owner)
        is_fair = owner_bytes <= self.owner_bytes and (not owner[1] or group_bytes <= self.group_bytes)
        return self.used_bytes + size_bytes <= self.total_bytes and is_fair

    def require_space(self, owner: Owner, size_bytes: int) -> None:
        """Raise `Unavailable` (TRY_LATER) if the budget has not so many more bytes."""
        if not self.has_space(owner, size_bytes):
            raise Unavailable("TRY_LATER", "body: other requests use all space for bodies", retry_after_seconds=1)

    def change(self, owner: Owner, size_bytes: int) -> None:
        """Count bytes that have arrived, or negative ones that are given back."""
        self.used_bytes += size_bytes
        for part in owner:
            self._bytes_by_owner[part] += size_bytes
            if not self._bytes_by_owner[part]:
                del self._bytes_by_owner[part]


class Reservation:
    """The bytes of one request in a budget: the one of unchecked tokens first, and the subject's after sign-in."""

    def __init__(self, request: Request, *, needs_no_token: bool, scope: Scope | None) -> None:
        self._request = request
        self._scope = scope
        self._budget: BodyBudget = request.app.state.unchecked_budget
        self._owner: Owner = ("without a token" if needs_no_token else "unchecked", f"network {read_network(request)}")
        self._is_final = needs_no_token
        self._size_bytes = 0

    async def expect(self, size_bytes: int) -> None:
        """Refuse a body that would not fit now, before it is read. `Unavailable`, `Unauthenticated`, `Denied`."""
        if size_bytes > UNTRUSTED_BYTES:
            await self._sign_in()
            self._budget.require_space(self._owner, size_bytes)

    async def add(self, size_bytes: int) -> None:
        """Count bytes that have arrived. `Unavailable`, `Unauthenticated`, `Denied`."""
        if self._size_bytes + size_bytes > UNTRUSTED_BYTES or not self._budget.has_space(self._owner, size_bytes):
            await self._sign_in()
        self._budget.require_space(self._owner, size_bytes)
        self._budget.change(self._owner, size_bytes)
        self._size_bytes += size_bytes

    def release(self) -> None:
        """Give all bytes back."""
        self._budget.change(self._owner, -self._size_bytes)
        self._size_bytes = 0

    async def _sign_in(self) -> None:
        if self._is_final:
            return
        actor = await run_in_threadpool(look_up_actor, self._request)
        if self._scope is not None and not actor.has_scope(self._scope):
            raise actor.lacks(self._scope)
        size_bytes = self._size_bytes
        self.release()
        self._budget = self._request.app.state.body_budget
        self._owner = actor.shares
        self._is_final = True
        await self.add(size_bytes)


@asynccontextmanager
async def read_body(
    request: Request, limit_bytes: int, *, needs_no_token: bool, scope: Scope | None
) -> AsyncIterator[Request]:
    """Yield the request with its whole body in `state.body`. `TooLarge` (SIZE_INVALID), `Unauthenticated`, `Denied`.

    `state.unread_body` is true until the body is complete: the connection cannot be used again then.
    """
    request.state.unread_body = True
    if not needs_no_token:
        require_secret(request)
    expected_bytes = _read_length(request, limit_bytes)
    reservation = Reservation(request, needs_no_token=needs_no_token, scope=scope)
    body = bytearray()
    try:
        await reservation.expect(expected_bytes)
        async for chunk in request.stream():
            if len(body) + len(chunk) > limit_bytes:
                raise _too_large(limit_bytes)
            await reservation.add(len(chunk))
            body += chunk
        request.state.unread_body = False
        request.state.body = bytes(body)
        yield Request(request.scope, _replay(request.state.body, request.receive))
    finally:
        reservation.release()
        request.state.body = b""  # the request lives on while its response is sent and work follows


async def spool_body(request: Request, actor: Actor, file: IO[bytes], budget: BodyBudget, limit_bytes: int) -> int:
    """Write the body to a file, in threads; return its size. The caller gives the bytes back to the budget.

    `TooLarge` (SIZE_INVALID) beyond the limit, `Unavailable` (TRY_LATER) beyond the budget; then nothing is counted.
    A declared size is enough for that: nothing is read then.
    """
    size_bytes, buffer, owner = 0, bytearray(), actor.shares
    budget.require_space(owner, _read_length(request, limit_bytes))
    try:
        async for chunk in request.stream():
            budget.require_space(owner, len(chunk))
            budget.change(owner, len(chunk))
            size_bytes += len(chunk)
            buffer += chunk
            if size_bytes > limit_bytes:
                raise _too_large(limit_bytes)
            if len(buffer) >= SPOOL_BYTES:
                await run_in_threadpool(file.write, buffer)
                buffer = bytearray()
        await run_in_threadpool(file.write, buffer)
        await run_in_threadpool(file.flush)
    except BaseException:
        budget.change(owner, -size_bytes)
        raise
    return size_bytes


def _read_length(request: Request, limit_bytes: int) -> int:
    """Return the size that a request declares; 0 for none. `TooLarge` (SIZE_INVALID) beyond the limit."""
    declared = request.headers.get("content-length", "")
    size_bytes = int(declared[:20]) if declared.isascii() and declared.isdigit() else 0
    if size_bytes > limit_bytes:
        raise _too_large(limit_bytes)
    return size_bytes


def is_large(body: bytes) -> bool:
    """Whether few bodies of this size, or with so many values, are to be parsed at once."""
    return len(body) > BODY_LIMIT_BYTES or (len(body) > VALUES_LIMIT and count_values(body) > VALUES_LIMIT)


def has_many_values(body: bytes) -> bool:
    """Whether one body with so many values is to be parsed at a time: it may take 440 MB."""
    return len(body) > LIST_VALUES_LIMIT and count_values(body) > LIST_VALUES_LIMIT


def check_values(body: bytes, limit: int) -> None:
    """Refuse a JSON body of so many values that it would take seconds and much memory. `TooLarge` (SIZE_INVALID)."""
    if len(body) > limit and has_more_values(body, limit):
        raise TooLarge("SIZE_INVALID", f"body: has over {limit} values, the limit for this route")


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge("SIZE_INVALID", f"body: over the limit of {limit_bytes} bytes for this route")


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
