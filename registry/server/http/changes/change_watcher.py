"""`ChangeWatcher`: wakes requests that wait for a change. One task of the process looks for all of them."""

import asyncio
import threading
import time

from starlette.concurrency import run_in_threadpool

from registry.server.http.changes.freshness import ChangeCounter, Counts, Freshness

LOOK_SECONDS = 0.1
LOOK_ANYWAY_SECONDS = 0.5
"""How often to look if it is unknown whether anything was committed (PostgreSQL without `Freshness.run`)."""


class ChangeWatcher:
    """The task runs while a request waits. Used on the event loop only."""

    def __init__(self, freshness: Freshness, counter: ChangeCounter, closing: threading.Event) -> None:
        self._freshness, self._counter, self._closing = freshness, counter, closing
        self._task: asyncio.Task[None] | None = None
        self._next: asyncio.Future[Counts | None] | None = None
        self._waiting = 0
        self._latest: tuple[object, Counts | None, float] = (None, None, float("-inf"))
        """The stamp of the last look, what it found, and when that was."""
        self._has_newcomers = False
        """Whether a request began to wait that knows no counts of the stamp of then."""

    async def count(self) -> Counts:
        """Return the counts of now. `Unavailable` while the database hangs."""
        return await self._read(self._freshness.stamp())

    async def wait(self, previous: Counts, until: float) -> Counts | None:
        """Return the counts once they differ from these; None at that time, or if the server stops. `Unavailable`."""
        self._waiting += 1
        try:
            latest = self._counter.peek(self._freshness.stamp())
            self._has_newcomers |= latest is None
            while not self._closing.is_set() and time.monotonic() < until:
                counts = latest if latest not in (None, previous) else await self._join(until)
                if counts != previous:
                    return counts
                latest = self._latest[1]  # it may have looked again before this task ran
            return None
        finally:
            self._waiting -= 1

    async def _join(self, until: float) -> Counts | None:
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.get_loop() is not loop:
            self._task, self._next = loop.create_task(self._watch()), None
        if self._next is None:
            self._next = loop.create_future()
        done, _ = await asyncio.wait([self._next], timeout=max(0.0, until - time.monotonic()))
        return done.pop().result() if done else None

    async def _watch(self) -> None:
        try:
            while self._waiting and not self._closing.is_set():
                await self._look()
                await asyncio.sleep(LOOK_SECONDS)
            self._wake(None)
        except Exception as e:
            if self._next is not None:
                self._next.set_exception(e)
                self._next.exception()  # else a log line, if no request is left to raise it
        finally:
            self._task = self._next = None

    async def _look(self) -> None:
        stamp, (last_stamp, last, looked_at) = self._freshness.stamp(), self._latest
        if stamp is None:
            is_due = time.monotonic() - looked_at > LOOK_ANYWAY_SECONDS
        else:
            is_due = stamp != last_stamp or self._has_newcomers
        if not is_due:
            return
        has_newcomers, self._has_newcomers = self._has_newcomers, False
        counts = await self._read(stamp)
        self._latest = (stamp, counts, time.monotonic())
        if counts != last or has_newcomers:
            self._wake(counts)

    def _wake(self, counts: Counts | None) -> None:
        woken, self._next = self._next, None
        if woken is not None:
            woken.set_result(counts)

    async def _read(self, stamp: object | None) -> Counts:
        counts = self._counter.peek(stamp)
        return counts if counts is not None else await run_in_threadpool(self._counter.read, stamp)
