"""`Admission`: what this process takes on at a time, for one tenant and in all. Whoever is beyond it gets 503.

- A tenant has `REQUESTS_EACH` requests in threads, of them one with a large body; its others wait for `WAIT_SECONDS`.
- A tenant has `BYTES_EACH` in flight: bodies that arrived, and responses that are not sent yet.
- A request that needs no token may have `STRANGER_BYTES` within `STRANGER_SECONDS`, in a space of strangers. If that is
  full, the body that has waited longest ends, and not the one that arrives.
- A tenant is the namespace that a token is limited to, else the subject or the token; without a token, the network.

The memory limit of the process (docs/deploy.md) holds what is not counted here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, fail_after

from registry.errors import Unavailable

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
STRANGER_BYTES = 20 * 2**10
STRANGER_SECONDS = 5.0
STRANGERS_BYTES = 16 * 2**20
STRANGERS_BYTES_EACH = 2 * 2**20
"""Of the bodies of requests that need no token, in all and from one network."""
DISK_BYTES = 16 * 2**30
DISK_BYTES_EACH = 4 * 2**30
"""Of bodies that wait on disk."""


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


class StrangersSpace(Space):
    """A space in which whoever waits makes room for whoever comes: else one client could keep all others out."""

    def __init__(self, each: int, total: int) -> None:
        super().__init__(each, total)
        self._waiting: dict[Held, tuple[str, asyncio.Timeout]] = {}
        """Of bodies that are still arriving, the oldest first: the network and the deadline."""

    @asynccontextmanager
    async def wait(self, body: Held, network: str) -> AsyncIterator[None]:
        """A block in which a body arrives. `TimeoutError` after `STRANGER_SECONDS`, or earlier if it makes room."""
        async with asyncio.timeout(STRANGER_SECONDS) as deadline:
            self._waiting[body] = network, deadline
            try:
                yield
            finally:
                self._waiting.pop(body, None)

    def require(self, tenant: str, size_bytes: int) -> None:
        """End the bodies that have waited longest until there is so much space. `Unavailable` if nobody waits."""
        while not self.has_space(tenant, size_bytes):
            is_own = self._held[tenant] + size_bytes > self._each
            oldest = next((body for body, (of, _) in self._waiting.items() if of == tenant or not is_own), None)
            if oldest is None:
                break
            _, deadline = self._waiting.pop(oldest)
            oldest.release()
            deadline.reschedule(asyncio.get_running_loop().time())
        super().require(tenant, size_bytes)


class Admission:
    """The limits of one process. `strangers`: for bodies of requests that need no token."""

    def __init__(self) -> None:
        self._requests = Turns(REQUESTS_EACH, REQUESTS)
        self._large = Turns(LARGE_EACH, LARGE)
        self._lists = Turns(LISTS_EACH, LISTS)
        self.memory = Space(BYTES_EACH, BYTES)
        self.strangers = StrangersSpace(STRANGERS_BYTES_EACH, STRANGERS_BYTES)
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
