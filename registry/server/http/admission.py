"""`Admission`: what this process takes on at a time, for one tenant and in all. Whoever is beyond it gets 503.

- A tenant has `REQUESTS_EACH` requests in threads, of them one with a large body; its others wait for `WAIT_SECONDS`.
- A tenant has `BYTES_EACH` in flight: bodies that arrived, and responses that are not sent yet.
- Who has not signed in may send `UNTRUSTED_BYTES`.
- A tenant is the namespace that a token is limited to, else the subject or the token; without a token, the network.

The memory limit of the process (docs/deploy.md) holds what is not counted here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, fail_after
from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive, Scope, Send

from registry.errors import Unavailable
from registry.server.actors import Actor
from registry.server.http.request_actor import look_up_actor, read_network, read_secret

REQUESTS = 64
REQUESTS_EACH = 16
LARGE = 2
LARGE_EACH = 1
"""Requests with a large body (`request_body.is_large`): one may take 440 MB while it is parsed."""
LISTS = 8
LISTS_EACH = 2
"""Requests whose response may have megabytes."""
WAIT_SECONDS = 10.0
BYTES = 256 * 2**20
BYTES_EACH = 64 * 2**20
STRANGERS_BYTES = 16 * 2**20
STRANGERS_BYTES_EACH = 2 * 2**20
"""Of bodies whose senders have not signed in, in all and from one network."""
DISK_BYTES = 16 * 2**30
DISK_BYTES_EACH = 4 * 2**30
"""Of bodies that wait on disk."""
PART_BYTES = 64 * 2**10
"""Larger responses are counted, and sent in parts of this size."""


class Turns:
    """How many of something run at a time. Whoever waits longer than `WAIT_SECONDS` gets 503."""

    def __init__(self, each: int, total: int) -> None:
        self._each = each
        self._all = CapacityLimiter(total)
        self._of_tenant: WeakValueDictionary[str, CapacityLimiter] = WeakValueDictionary()

    async def take(self, stack: AsyncExitStack, tenant: str) -> None:
        """Wait for a turn, which lasts until the end of `stack`. `TimeoutError`."""
        own = self._of_tenant.get(tenant) or CapacityLimiter(self._each)
        self._of_tenant[tenant] = own  # it lasts while one of its requests does
        await stack.enter_async_context(own)
        await stack.enter_async_context(self._all)


class Space:
    """Bytes that are held, by tenant and in all. For the event loop only."""

    def __init__(self, each: int, total: int) -> None:
        self._each, self._total = each, total
        self._held: Counter[str] = Counter()

    @property
    def used_bytes(self) -> int:
        """What all tenants hold."""
        return self._held.total()

    def has_space(self, tenant: str, size_bytes: int) -> bool:
        """Whether a tenant may hold so many more bytes."""
        return self._held[tenant] + size_bytes <= self._each and self.used_bytes + size_bytes <= self._total

    def require(self, tenant: str, size_bytes: int) -> None:
        """Raise `Unavailable` (TRY_LATER) if there is not so much space."""
        if not self.has_space(tenant, size_bytes):
            detail = "the requests that are under way use all space; send this one again"
            raise Unavailable("TRY_LATER", detail, retry_after_seconds=1)

    @contextmanager
    def hold(self) -> Iterator[Held]:
        """A context that gives back what is added in it."""
        reserved = Held(self._held, self)
        try:
            yield reserved
        finally:
            reserved.release()


class Held:
    """The bytes of one request."""

    def __init__(self, counter: Counter[str], space: Space) -> None:
        self._counter, self._space = counter, space
        self._of_tenant: Counter[str] = Counter()

    def add(self, tenant: str, size_bytes: int, *, is_required: bool = True) -> None:
        """Count bytes. `Unavailable` (TRY_LATER) beyond the space, unless they have to be held anyway."""
        if is_required:
            self._space.require(tenant, size_bytes)
        self._counter[tenant] += size_bytes
        self._of_tenant[tenant] += size_bytes

    def release(self) -> None:
        """Give all bytes back."""
        self._counter -= self._of_tenant
        self._of_tenant.clear()


class Admission:
    """The limits of one process. `strangers`: for bodies whose senders have not signed in."""

    def __init__(self) -> None:
        self._requests = Turns(REQUESTS_EACH, REQUESTS)
        self._large = Turns(LARGE_EACH, LARGE)
        self._lists = Turns(LISTS_EACH, LISTS)
        self.memory = Space(BYTES_EACH, BYTES)
        self.strangers = Space(STRANGERS_BYTES_EACH, STRANGERS_BYTES)
        self.disk = Space(DISK_BYTES_EACH, DISK_BYTES)

    @asynccontextmanager
    async def turn(self, tenant: str, *, is_large: bool = False, is_list: bool = False) -> AsyncIterator[None]:
        """Wait until a tenant may have one more request in a thread. `Unavailable` (TRY_LATER) if that takes long."""
        async with AsyncExitStack() as stack:
            try:
                with fail_after(WAIT_SECONDS):
                    if is_large:
                        await self._large.take(stack, tenant)
                    elif is_list:
                        await self._lists.take(stack, tenant)
                    await self._requests.take(stack, tenant)
            except TimeoutError:
                detail = "too many requests are under way; send this one again"
                raise Unavailable("TRY_LATER", detail, retry_after_seconds=1) from None
            yield


def known_tenant(request: Request) -> str | None:
    """The tenant of a token that was used lately, without a look at the database."""
    actor: Actor | None = getattr(request.state, "actor", None)
    if actor is None and (secret := read_secret(request)) is not None:
        actor = request.app.state.actor_cache.get(secret)
    return actor.tenant if actor is not None else None


def network_of_request(request: Request) -> str:
    """The tenant of requests whose senders are not known."""
    return f"network {read_network(request)}"


async def find_tenant(request: Request, *, needs_no_token: bool = False) -> str:
    """Whom a request counts for. `Unauthenticated` for a token that is not valid."""
    if needs_no_token or read_secret(request) is None:
        return network_of_request(request)
    return known_tenant(request) or (await run_in_threadpool(look_up_actor, request)).tenant


class HeldResponse(Response):
    """A response that counts for its reader until it is sent. `Unavailable` (TRY_LATER) before that."""

    def __init__(self, response: Response, space: Space, tenant: str, size_bytes: int, *, is_refusable: bool) -> None:
        super().__init__(status_code=response.status_code)
        self._response, self._space, self._tenant, self._size_bytes = response, space, tenant, size_bytes
        self._is_refusable = is_refusable

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_parts(message: Message) -> None:
            body: bytes = message.get("body", b"")
            start = 0
            while len(body) - start > PART_BYTES:  # each waits until the one before has left the server's buffer
                await send({**message, "body": body[start : start + PART_BYTES], "more_body": True})
                start += PART_BYTES
            await send({**message, "body": body[start:]} if body else message)

        with self._space.hold() as reserved:
            reserved.add(self._tenant, self._size_bytes, is_required=self._is_refusable)
            await self._response(scope, receive, send_in_parts if getattr(self._response, "body", b"") else send)


def count_response(request: Request, response: Response, *, is_change: bool) -> Response:
    """Count a large response, or one that reads a file while it is sent. That to a change is sent in any case."""
    size_bytes = getattr(response, "held_bytes", len(getattr(response, "body", b"")))
    if size_bytes <= PART_BYTES:
        return response
    memory: Space = request.app.state.admission.memory
    tenant = known_tenant(request) or network_of_request(request)
    return HeldResponse(response, memory, tenant, size_bytes, is_refusable=not is_change)
