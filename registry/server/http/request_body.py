"""Request bodies that are read whole before a route runs: after sign-in, and within the space for them (`Admission`).

- A request without a token is refused unread. At most `UNTRUSTED_BYTES` are read before the token is looked up.
- What counts is what has arrived, until the response is made. A declared length reserves nothing.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import IO, TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive

from registry.api.operations.operation import VALUES_LIMIT
from registry.errors import TooLarge
from registry.roles import Scope
from registry.server.http.admission import Held
from registry.server.http.request_actor import known_tenant, look_up_actor, network_of_request, require_secret
from registry.server.http.services import services_of
from registry.strict.json import count_values, has_more_values

BODY_LIMIT_BYTES = 2**20
UNTRUSTED_BYTES = 64 * 2**10
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
    if not needs_no_token:
        require_secret(request)
    admission = services_of(request).admission
    network = network_of_request(request)
    tenant = None if needs_no_token else known_tenant(request)
    expected_bytes = _read_length(request, limit_bytes)
    body = bytearray()
    try:
        with admission.strangers.hold() as of_stranger, admission.memory.hold() as of_tenant:
            if expected_bytes > UNTRUSTED_BYTES:
                tenant = tenant or await _sign_in(request, scope)
                admission.memory.require(tenant, expected_bytes)
            async for chunk in request.stream():
                size_bytes = len(body) + len(chunk)
                if size_bytes > limit_bytes:
                    raise _too_large(limit_bytes)
                is_small = size_bytes <= UNTRUSTED_BYTES and admission.strangers.has_space(network, len(chunk))
                if tenant is None and not (is_small or needs_no_token):
                    tenant = await _sign_in(request, scope)
                if tenant is None:
                    of_stranger.add(network, len(chunk))
                else:
                    of_tenant.add(tenant, len(chunk))
                body += chunk
            request.state.unread_body = False
            request.state.body = bytes(body)
            yield Request(request.scope, _replay(request.state.body, request.receive))
    finally:
        request.state.body = b""  # the request lives on while its response is sent and work follows


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


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
