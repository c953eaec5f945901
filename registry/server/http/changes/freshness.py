"""`Freshness`: whether anything was committed since a response was cached. `ChangeCounter`: whether an event was.

- Two stamps are equal only if no transaction of any process was committed between them.
- SQLite: `PRAGMA data_version` of a dedicated connection, read each time. It takes microseconds and is exact.
- PostgreSQL: the latest snapshot (`pg_current_snapshot()`), which a thread reads every `POLL_SECONDS`. Commits of other
  servers are seen after that time, those of this one at once. Without a recent snapshot the stamp is None. The thread
  reads the access epoch beside it: what was revoked or withheld before an outage stays so during it.
- `stamp` raises `Unavailable` while the database hangs, so that requests do not wait for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from sqlalchemy import Engine, func, literal_column
from sqlmodel import col, select

from registry.errors import Unavailable
from registry.server.access import epoch
from registry.server.database import db, dialects
from registry.server.database.models import EventRow, VerdictRow

_LOG = logging.getLogger("registry.server")
POLL_SECONDS = 0.1
LATE_SECONDS = 1.0
"""A snapshot older than this is not used."""
SILENT_SECONDS = 5.0
"""A database that has not responded to the thread for so long counts as unavailable."""
_NEVER = float("-inf")
_SNAPSHOT: Any = select(literal_column("pg_current_snapshot()::text"), epoch.current())
_DATABASE_UNAVAILABLE = Unavailable(
    "DATABASE_UNAVAILABLE", "the database cannot be reached", next_step="try again in a moment", retry_after_seconds=2
)


class Freshness:
    """Returns stamps. On SQLite an instance belongs to one thread; see `for_thread`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_file = dialects.of(engine).is_file
        self._connection: Any = None
        """Dedicated: SQLite's `data_version` ignores what its own connection writes, so it must never write."""
        self.access = 0
        """The largest access epoch that this process has read."""
        self._writes = 0
        self._snapshot: tuple[object, float] = (None, _NEVER)
        """The latest snapshot, and when it was read."""
        self._unavailable = False
        self._query_started_at = float("inf")

    def see_access(self, epoch: int) -> None:
        """Take note of an access epoch that was read: responses of earlier ones are no longer used."""
        self.access = max(self.access, epoch)

    def stamp(self) -> object | None:
        """Return the current stamp, or None if it is unknown. `Unavailable` (DATABASE_UNAVAILABLE)."""
        if self._is_file:
            return self._data_version()
        if self._unavailable or time.monotonic() - self._query_started_at > SILENT_SECONDS:
            raise _DATABASE_UNAVAILABLE
        snapshot, read_at = self._snapshot
        return None if self._writes or time.monotonic() - read_at > LATE_SECONDS else snapshot

    def _data_version(self) -> object:
        with db.translate_errors():
            if self._connection is None:
                self._connection = self._engine.raw_connection()
            return self._connection.cursor().execute("PRAGMA data_version").fetchone()[0]

    def for_thread(self) -> Freshness:
        """Return the instance that another thread must use."""
        return Freshness(self._engine) if self._is_file else self

    @contextmanager
    def during_write(self) -> Iterator[None]:
        """While a route writes, and until the thread has read a new snapshot, there is no stamp."""
        self._writes += 1
        try:
            yield
        finally:
            self._writes -= 1
            self._snapshot = (None, _NEVER)

    def run(self, closing: threading.Event) -> None:
        """Read snapshots until `closing` is set. Returns at once on SQLite."""
        while not self._is_file and not closing.wait(POLL_SECONDS):
            self._poll()
        self._close()

    def _poll(self) -> None:
        """Read the latest snapshot, and discard it if this process began to write in between."""
        before, started_at = self._snapshot, time.monotonic()
        self._query_started_at = started_at
        try:
            snapshot, access = self._read_snapshot()
        except Unavailable as e:
            if not self._unavailable:
                _LOG.warning("the database cannot be reached: %s", e.detail)
            self._unavailable = True
            return
        finally:
            self._query_started_at = float("inf")
        if self._unavailable:
            _LOG.warning("the database can be reached again")
        self._unavailable = False
        self.see_access(access)
        if not self._writes and self._snapshot is before:
            self._snapshot = (snapshot, started_at)

    def _read_snapshot(self) -> tuple[object, int]:
        """Read snapshot and access epoch with one statement on an open connection, since it happens ten times a second.

        A connection may have ended although the database is available again: then it is opened again.
        """
        reused = self._connection is not None
        try:
            with db.translate_errors():
                if self._connection is None:
                    self._connection = db.bind(self._engine, write=False).connect()
                return tuple(self._connection.execute(_SNAPSHOT).one())
        except Unavailable:
            self._close()
            if not reused:
                raise
        return self._read_snapshot()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it may be broken in any way
                connection.invalidate()
                connection.close()


class Counts(NamedTuple):
    """The number of events, the id of the newest verdict, and the access epoch."""

    events: int
    verdict: int
    access: int


class ChangeCounter:
    """Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._latest: tuple[object, Counts] | None = None

    def peek(self, stamp: object | None) -> Counts | None:
        """Return the counts at this stamp if they were read already; without a statement."""
        latest = self._latest
        return latest[1] if latest is not None and stamp is not None and latest[0] == stamp else None

    def read(self, stamp: object | None) -> Counts:
        """Return the counts at this stamp."""
        with self._lock:
            counts = self.peek(stamp)
            if counts is None:
                counts = self._query()
                self._latest = (stamp, counts)
        return counts

    def _query(self) -> Counts:
        numbered = select(func.coalesce(func.max(EventRow.position), 0)).scalar_subquery()
        pending = select(func.count()).select_from(EventRow).where(col(EventRow.position).is_(None)).scalar_subquery()
        verdict = select(func.coalesce(func.max(VerdictRow.id), 0)).scalar_subquery()
        with db.session(self._engine, write=False) as session:
            return Counts(*session.exec(select(numbered + pending, verdict, epoch.current())).one())
