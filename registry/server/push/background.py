"""Work after the response of a push: write its ref to the bucket, index cards, measure large weights.

- Nothing depends on this work: what is not done now is done after the next push, or by `gc`.
- One thread of a process does it for all pushes that finish together.
- Pushes take priority. Refs wait while other pushes are in progress, for `REFS_DELAY_SECONDS` at most; the ref of a
  single push is written at once. Measuring waits until no push was active for `QUIET_SECONDS` and no planned push
  waits for its commit, for `MEASURE_DELAY_SECONDS` at most.
"""

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy import Engine

from registry.server.catalog import refs
from registry.server.catalog.search import text_index
from registry.server.evaluation import weights
from registry.server.storage.blobs import BlobStore

QUIET_SECONDS = 0.3
REFS_DELAY_SECONDS = 2.0
MEASURE_DELAY_SECONDS = 20.0
REFS_PER_BATCH = 64


class _Scheduler:
    """The pushes and the background work of this process, for one database."""

    def __init__(self) -> None:
        self.running = threading.Lock()
        """Held by the thread that does the work."""
        self._changed = threading.Condition()
        self._requested = False
        self._active_pushes = 0
        self._planned: dict[str, float] = {}
        """Pushes that were planned and are not committed, and when they were planned."""
        self._commit_locks: weakref.WeakValueDictionary[str, threading.Lock] = weakref.WeakValueDictionary()
        """By the digest of a request; a lock exists while someone has it or waits for it."""
        self._last_activity = -QUIET_SECONDS
        self._measure_at: float | None = None
        """When to measure even if pushes are in progress; None while nothing waits to be measured."""

    @contextmanager
    def push_in_progress(self, push_ids: Iterable[str]) -> Iterator[None]:
        self._count(1)
        try:
            yield
        finally:
            self._forget(push_ids)
            self._count(-1)

    def _forget(self, push_ids: Iterable[str]) -> None:
        with self._changed:
            for push_id in push_ids:
                self._planned.pop(push_id, None)

    def forget_plans(self) -> None:
        with self._changed:
            self._planned = {}
            self._changed.notify_all()

    def commit_lock(self, request_digest: str) -> threading.Lock:
        with self._changed:
            return self._commit_locks.setdefault(request_digest, threading.Lock())

    def _count(self, change: int) -> None:
        with self._changed:
            self._active_pushes += change
            self._last_activity = time.monotonic()
            self._changed.notify_all()

    def expect_commits(self, push_ids: Iterable[str]) -> None:
        with self._changed:
            self._planned.update(dict.fromkeys(push_ids, time.monotonic()))

    def was_planned(self, push_id: str, within_seconds: float) -> bool:
        with self._changed:
            planned_at = self._planned.get(push_id)
        return planned_at is not None and time.monotonic() - planned_at < within_seconds

    @property
    def requested(self) -> bool:
        """Whether a push has finished since `run` last started."""
        return self._requested

    def request(self) -> None:
        with self._changed:
            self._requested = True
            self._changed.notify_all()

    def run(self, engine: Engine, blobs: BlobStore) -> None:
        """Write refs and index cards at the next pause, then measure while it is quiet.

        Returns early when a push has finished.
        """
        self._wait(time.monotonic() + REFS_DELAY_SECONDS, or_when=lambda: not self._planned)
        self._requested = False
        while refs.write_missing(engine, blobs, limit=REFS_PER_BATCH) >= REFS_PER_BATCH:
            pass
        while text_index.index_newest(engine, blobs):
            pass
        while weights.has_unmeasured(engine):
            self._measure_at = self._measure_at or time.monotonic() + MEASURE_DELAY_SECONDS
            self._wait(self._measure_at, or_when=lambda: self._requested, planned_count=True)
            if self._requested and time.monotonic() < self._measure_at:
                return
            weights.measure_newest(engine, blobs)
        self._measure_at = None

    def _wait(self, until: float, *, or_when: Callable[[], bool], planned_count: bool = False) -> None:
        """Wait for a quiet moment, or for `or_when` while no push is active; not beyond `until`.

        `planned_count`: a planned push counts as active. Its bytes may be on their way straight to the store.
        """
        with self._changed:
            while (now := time.monotonic()) < until:
                self._planned = {push: at for push, at in self._planned.items() if now - at < MEASURE_DELAY_SECONDS}
                busy = self._active_pushes or (planned_count and self._planned)
                quiet_at = until if busy else self._last_activity + QUIET_SECONDS
                if now >= quiet_at or (not self._active_pushes and or_when()):
                    return
                self._changed.wait(min(quiet_at, until) - now)


_SCHEDULERS: weakref.WeakKeyDictionary[Engine, _Scheduler] = weakref.WeakKeyDictionary()


def _scheduler(engine: Engine) -> _Scheduler:
    return _SCHEDULERS.setdefault(engine, _Scheduler())


def push_in_progress(engine: Engine, push_ids: Iterable[str] = ()) -> AbstractContextManager[None]:
    """A context in which pushes are planned, received or, with their ids, committed."""
    return _scheduler(engine).push_in_progress(push_ids)


def commit_lock(engine: Engine, request_digest: str) -> AbstractContextManager[object]:
    """One of equal commit requests at a time: a client that repeats a slow one must not slow it down further."""
    return _scheduler(engine).commit_lock(request_digest)


def expect_commits(engine: Engine, push_ids: Iterable[str]) -> None:
    """Note that these pushes were planned and that their bytes and their commits will follow."""
    _scheduler(engine).expect_commits(push_ids)


def forget_plans(engine: Engine) -> None:
    """Note that pushes have ended before their time, with the name of their adapter: from now on each is looked up."""
    _scheduler(engine).forget_plans()


def was_planned(engine: Engine, push_id: str, *, hold_seconds: float) -> bool:
    """Whether this process planned the push a moment ago, and has not committed it: then it is open.

    At least half of `hold_seconds`, the time that a push stays open, was left when it was planned. If another server
    has ended the push since, bytes may still be staged: no commit takes them, and `gc` deletes them.
    """
    return _scheduler(engine).was_planned(push_id, min(MEASURE_DELAY_SECONDS, hold_seconds / 2))


def run_pending(engine: Engine, blobs: BlobStore) -> None:
    """Write the missing refs and measure waiting weights once pushes allow it."""
    scheduler = _scheduler(engine)
    scheduler.request()
    while scheduler.requested and scheduler.running.acquire(blocking=False):
        try:
            scheduler.run(engine, blobs)
        finally:
            scheduler.running.release()
