"""The threads of routes that ask the store: their own, so that a store that hangs holds up nobody else.

Invariants
- All other routes share the pool of the HTTP framework, which no store can fill.
- Who waits for a thread here waits on the event loop and holds nothing.
- What must end an upload ends it, whatever became of the request.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

Answer = TypeVar("Answer")
STORE_THREADS = 32
_LIMITER: RunVar[CapacityLimiter] = RunVar("store_threads")


class Waits:
    """In the annotation of a route's parameter: the route may wait for the store."""


async def ask_store(work: Callable[..., Answer], *words: Any, **given: Any) -> Answer:
    """Call it in a thread that may wait for the store."""
    return await to_thread.run_sync(functools.partial(work, *words, **given), limiter=_limiter())


async def end_at_store(work: Callable[[], None]) -> None:
    """The same for what is done even when the request was given up."""
    with anyio.CancelScope(shield=True):
        await ask_store(work)


def _limiter() -> CapacityLimiter:
    """One for each event loop."""
    try:
        return _LIMITER.get()
    except LookupError:
        limiter = CapacityLimiter(STORE_THREADS)
        _LIMITER.set(limiter)
        return limiter
