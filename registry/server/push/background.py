"""Aftercare: what a push leaves for after its answer: its record in the bucket, and the numbers of large weights.

Invariants
- None of it is needed for truth: what is left undone is done after the next push, and by `gc`.
- One thread of a process cares for all pushes that end together, and goes on while others ask.
- Who pushes has the machine: records wait while other pushes are under way, for `RECORDS_PATIENCE_SECONDS` at most;
  measuring waits until nobody has pushed for `QUIET_SECONDS` and no plan waits for its commit, for `PATIENCE_SECONDS`
  at most. After a push that comes alone its record is written at once.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy import Engine

from registry.server.catalog import metadata_backup
from registry.server.evaluation import weights
from registry.server.storage.blobs import BlobStore

QUIET_SECONDS = 0.3
RECORDS_PATIENCE_SECONDS = 2.0
PATIENCE_SECONDS = 20.0
RECORDS_AT_ONCE = 64


class _Desk:
    """Who cares in this process, for one database."""

    def __init__(self) -> None:
        self.busy = threading.Lock()
        self._changed = threading.Condition()
        self._wanted = False
        self._under_way = 0
        self._awaited: dict[str, float] = {}
        """Pushes that were planned and are not committed, and when they were planned."""
        self._commits: weakref.WeakValueDictionary[str, threading.Lock] = weakref.WeakValueDictionary()
        """By push; each is there for as long as somebody has it or waits for it."""
        self._last = -QUIET_SECONDS
        self._measure_at: float | None = None
        """Then it measures, whoever pushes; None while nothing waits to be measured."""

    @contextmanager
    def pushing(self, push_id: str) -> Iterator[None]:
        self._moved(1)
        try:
            yield
        finally:
            self._awaited.pop(push_id, None)
            self._moved(-1)

    def turn(self, push_id: str) -> threading.Lock:
        with self._changed:
            return self._commits.setdefault(push_id, threading.Lock())

    def _moved(self, change: int) -> None:
        with self._changed:
            self._under_way += change
            self._last = time.monotonic()
            self._changed.notify_all()

    def expect(self, push_id: str) -> None:
        with self._changed:
            self._awaited[push_id] = time.monotonic()

    @property
    def wanted(self) -> bool:
        """Whether a push has ended since `care` last looked."""
        return self._wanted

    def want(self) -> None:
        with self._changed:
            self._wanted = True
            self._changed.notify_all()

    def care(self, engine: Engine, blobs: BlobStore) -> None:
        """Records at the next pause, then measuring while it is quiet; back at once when a push has ended."""
        self._wait(time.monotonic() + RECORDS_PATIENCE_SECONDS, lambda: not self._awaited)
        self._wanted = False
        while metadata_backup.write_missing(engine, blobs, limit=RECORDS_AT_ONCE) >= RECORDS_AT_ONCE:
            pass
        while weights.waiting(engine):
            self._measure_at = self._measure_at or time.monotonic() + PATIENCE_SECONDS
            self._wait(self._measure_at, lambda: self._wanted, awaited_too=True)
            if self._wanted and time.monotonic() < self._measure_at:
                return
            weights.add_missing(engine, blobs, limit=1)
        self._measure_at = None

    def _wait(self, until: float, or_when: Callable[[], bool], *, awaited_too: bool = False) -> None:
        """Until nobody has pushed for a moment, or `or_when` while nobody pushes; not beyond `until`.

        `awaited_too`: nor is a push awaited, whose bytes may be on their way past this server, straight to the store.
        """
        with self._changed:
            while (now := time.monotonic()) < until:
                self._awaited = {push: at for push, at in self._awaited.items() if now - at < PATIENCE_SECONDS}
                busy = self._under_way or (awaited_too and self._awaited)
                quiet_at = until if busy else self._last + QUIET_SECONDS
                if now >= quiet_at or (not self._under_way and or_when()):
                    return
                self._changed.wait(min(quiet_at, until) - now)


_DESKS: weakref.WeakKeyDictionary[Engine, _Desk] = weakref.WeakKeyDictionary()


def pushing(engine: Engine, push_id: str = "") -> AbstractContextManager[None]:
    """A context in which a push is planned, received or, with its id, committed."""
    return _DESKS.setdefault(engine, _Desk()).pushing(push_id)


def turn(engine: Engine, push_id: str) -> AbstractContextManager[object]:
    """One commit of a push at a time: whoever asks again because it takes long must not make it take longer."""
    return _DESKS.setdefault(engine, _Desk()).turn(push_id)


def expect(engine: Engine, push_id: str) -> None:
    """This push was planned: its bytes and its commit are to come."""
    _DESKS.setdefault(engine, _Desk()).expect(push_id)


def keep_up(engine: Engine, blobs: BlobStore) -> None:
    """Write the records that are missing and measure what waits, when pushes are through."""
    desk = _DESKS.setdefault(engine, _Desk())
    desk.want()
    while desk.wanted and desk.busy.acquire(blocking=False):
        try:
            desk.care(engine, blobs)
        finally:
            desk.busy.release()
