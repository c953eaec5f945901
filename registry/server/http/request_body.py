"""Request bodies that are read whole before a route runs: after sign-in, and within the space for them (`Admission`).

- Where a token is needed, nothing is read before it is looked up, unless it was lately.
- Where none is needed, at most `STRANGER_BYTES` are read, for `STRANGER_SECONDS`.
- What counts is what has arrived, until the response is made. A declared length reserves nothing.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import IO, TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive

from registry.api.operations.operation import VALUES_LIMIT
from registry.errors import TooLarge, Unavailable
from registry.roles import Scope
from registry.server.http.admission import STRANGER_BYTES, STRANGER_SECONDS, Held
from registry.server.http.request_actor import known_tenant, look_up_actor, network_of_request, require_secret
from registry.server.http.services import services_of
from registry.strict.json import count_values, has_more_values

BODY_LIMIT_BYTES = 2**20
SPOOL_BYTES = 2**20
"""Received chunks are collected to about this size before they are written to disk."""
Endpoint = TypeVar("Endpoint", bound=Callable[..., object])


def limit_body(size_bytes: int) -> Callable[[Endpoint], Endpoint]:
    """Set the largest body of a route that is in no table of operations, instead of `BODY_LIMIT_BYTES`."""

    def decorate(endpoint: Endpoint) -> Endpoint:
        endpoint.body_limit_bytes = size_bytes  # type: ignore[attr-defined]
        return endpoint

    return decorate


@asynccontextmanager
async def read_body(
    request: Request, limit_bytes: int, *, needs_no_token: bool, scope: Scope | None
) -> AsyncIterator[Request]:
    """Yield the request with its whole body in `state.body`. `TooLarge` (SIZE_INVALID), `Unauthenticated`, `Denied`.

    `state.unread_body` is true until the body is complete: the connection cannot be used again then.
    """
    request.state.unread_body = True
    admission = services_of(request).admission
    try:
        if needs_no_token:
            limit_bytes, network = min(limit_bytes, STRANGER_BYTES), network_of_request(request)
            _read_length(request, limit_bytes)
            with admission.strangers.hold() as reserved:
                try:
                    async with admission.strangers.wait(reserved, network):
                        body = await _receive(request, reserved, network, limit_bytes)
                except TimeoutError:
                    raise _late() from None
                yield _complete(request, body)
        else:
            require_secret(request)
            tenant = known_tenant(request) or await _sign_in(request, scope)
            admission.memory.require(tenant, _read_length(request, limit_bytes))
            with admission.memory.hold() as reserved:
                yield _complete(request, await _receive(request, reserved, tenant, limit_bytes))
    finally:
        request.state.body = b""  # the request lives on while its response is sent and work follows


async def _receive(request: Request, reserved: Held, tenant: str, limit_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > limit_bytes:
            raise _too_large(limit_bytes)
        reserved.add(tenant, len(chunk))
        body += chunk
    return bytes(body)


def _complete(request: Request, body: bytes) -> Request:
    request.state.unread_body, request.state.body = False, body
    return Request(request.scope, _replay(body, request.receive))


async def _sign_in(request: Request, scope: Scope | None) -> str:
    """Return the tenant of a request. `Unauthenticated`, `Denied`."""
    actor = await run_in_threadpool(look_up_actor, request)
    if scope is not None and not actor.has_scope(scope):
        raise actor.lacks(scope)
    return actor.tenant


async def spool_body(request: Request, reserved: Held, file: IO[bytes], limit_bytes: int) -> int:
    """Write the body to a file, in threads; return its size. `TooLarge` (SIZE_INVALID), `Unavailable` (TRY_LATER)."""
    size_bytes, buffer = 0, bytearray()
    tenant = known_tenant(request) or network_of_request(request)
    services_of(request).admission.disk.require(tenant, _read_length(request, limit_bytes))
    async for chunk in request.stream():
        reserved.add(tenant, len(chunk))
        size_bytes += len(chunk)
        buffer += chunk
        if size_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        if len(buffer) >= SPOOL_BYTES:
            await run_in_threadpool(file.write, buffer)
            buffer = bytearray()
    await run_in_threadpool(file.write, buffer)
    await run_in_threadpool(file.flush)
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


def check_values(body: bytes, limit: int) -> None:
    """Refuse a JSON body of so many values that it would take seconds and much memory. `TooLarge` (SIZE_INVALID)."""
    if len(body) > limit and has_more_values(body, limit):
        raise TooLarge("SIZE_INVALID", f"body: has over {limit} values, the limit for this route")


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge("SIZE_INVALID", f"body: over the limit of {limit_bytes} bytes for this route")


def _late() -> Unavailable:
    limit = f"without a token it must arrive within {STRANGER_SECONDS:g} seconds, and sooner while many others do"
    return Unavailable("BODY_STALLED", f"body: {limit}", next_step="send the request again")


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
