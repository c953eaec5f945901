"""The thread pool of routes that call the blob store, so that a store that hangs blocks no other route.

All other routes share the thread pool of the HTTP framework. A request that waits for a thread here waits on the event
loop and holds nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

Result = TypeVar("Result")
STORE_THREADS = 32
_LIMITER: RunVar[CapacityLimiter] = RunVar("store_threads")


class UsesStore:
    """Annotates a parameter of a route that calls the store."""


async def run_in_store_thread(function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Call a function in a thread that may wait for the store."""
    return await to_thread.run_sync(functools.partial(function, *args, **kwargs), limiter=_limiter())


async def run_in_store_thread_always(function: Callable[[], None]) -> None:
    """Call a cleanup function in such a thread, even if the request is cancelled."""
    with anyio.CancelScope(shield=True):
        await run_in_store_thread(function)


def _limiter() -> CapacityLimiter:
    """Return the limiter of this event loop."""
    try:
        return _LIMITER.get()
    except LookupError:
        limiter = CapacityLimiter(STORE_THREADS)
        _LIMITER.set(limiter)
        return limiter
