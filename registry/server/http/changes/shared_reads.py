"""`SharedReads`: results of equal reads of desired states, by requests that wait for a change or do not."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.concurrency import run_in_threadpool

from registry.server.http.changes.freshness import Counts

Result = TypeVar("Result")
COUNTS_SHARED = 4
"""Readings of the change counter whose results are kept: while one changes, some requests still have the one before."""
THREADS = 2
"""Threads of their own for desired states, so that other requests do not queue behind them."""


class SharedReads:
    """Results of equal reads at one reading of the change counter, so that many who wait cost one read.

    Used on the event loop only.
    """

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(THREADS)
        self._reads: dict[Counts, dict[object, asyncio.Future[Any]]] = {}

    async def get(self, key: object, counts: Counts | None, read: Callable[[], Result]) -> Result:
        """Return the result of `read`, which is called in a thread unless it was called for this key and counts."""
        if counts is None:
            return await run_in_threadpool(read)
        reads = self._reads.setdefault(counts, {})
        while len(self._reads) > COUNTS_SHARED:
            del self._reads[next(iter(self._reads))]
        if key not in reads:
            reads[key] = asyncio.ensure_future(to_thread.run_sync(read, limiter=self._limiter))
        try:
            result: Result = await asyncio.shield(reads[key])
        except Exception:
            reads.pop(key, None)
            raise
        return result

    def forget(self, key: object) -> None:
        """Drop a result that is too large to be kept."""
        for reads in self._reads.values():
            reads.pop(key, None)
