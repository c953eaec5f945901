"""`Freshness`: has anything at all been committed since? Asked before each kept answer is given again.

Invariants
- `stamp` is equal to an earlier one only if no transaction was committed between the two, by whatever process.
- SQLite: `PRAGMA data_version` of a connection of its own, asked each time: a few microseconds, exact.
- PostgreSQL: the newest snapshot (`pg_current_snapshot()`), read by `follow` every POLL_SECONDS. Without a follower, or
  while it is behind, the stamp is None, which means: ask for the pointer itself. What another server commits is seen
  POLL_SECONDS later; what this one commits, at once.
- `stamp` raises `Unavailable` while the follower cannot reach the database, or has waited for its answer for long: a
  database that hangs would have everybody wait as long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Engine

from registry.errors import Unavailable
from registry.server.database import db

POLL_SECONDS = 0.1
BEHIND_SECONDS = 1.0
"""A snapshot that is older than this proves nothing any more."""
SILENT_SECONDS = 5.0
"""A database that has not answered the follower for so long is away, whether it refuses or only hangs."""
AWAY = Unavailable(
    "DATABASE_UNAVAILABLE", "the database cannot be reached", next_step="try again in a moment", retry_after_seconds=2
)


class Freshness:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._own = engine.dialect.name == "sqlite"
        self._connection: Any = None
        """Held for good. SQLite's is not told of what it writes itself, so nobody else may ever get this one."""
        self._writing = 0
        self._seen: tuple[object, float] = (None, float("-inf"))
        self._away = False
        self._asked_at = float("inf")
        """Since when the follower has been waiting for an answer."""

    def stamp(self) -> object | None:
        if self._own:
            return self._data_version()
        if self._away or time.monotonic() - self._asked_at > SILENT_SECONDS:
            raise AWAY
        seen, read_at = self._seen
        return None if self._writing or time.monotonic() - read_at > BEHIND_SECONDS else seen

    def _data_version(self) -> object:
        with db.translate_errors():
            if self._connection is None:
                self._connection = self._engine.raw_connection()
            return self._connection.cursor().execute("PRAGMA data_version").fetchone()[0]

    def apart(self) -> Freshness:
        """The same for another thread: SQLite's connection is asked by one."""
        return Freshness(self._engine) if self._own else self

    @contextmanager
    def disturbed(self) -> Iterator[None]:
        """While this process writes, and until the follower has looked again, no stamp is good."""
        self._writing += 1
        try:
            yield
        finally:
            self._writing -= 1
            self._seen = (None, float("-inf"))

    def follow(self, closing: threading.Event) -> None:
        """Look again and again until the server ends. For a thread of its own; returns at once on SQLite."""
        while not self._own and not closing.wait(POLL_SECONDS):
            self._look()
        self._drop()

    def _look(self) -> None:
        """Read the newest snapshot. A write of this process that began meanwhile makes it worthless."""
        before, began = self._seen, time.monotonic()
        self._asked_at = began
        try:
            found = self._snapshot()
        except Unavailable:
            self._away = True
            return
        finally:
            self._asked_at = float("inf")
        self._away = False
        if not self._writing and self._seen is before:
            self._seen = (found, began)

    def _snapshot(self) -> object:
        """By one statement over a connection that is kept: ten times a second, every one beside it would be felt.

        A connection that was kept may have ended with a database that is there again.
        """
        kept = self._connection is not None
        try:
            with db.translate_errors():
                if self._connection is None:
                    self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                return self._connection.exec_driver_sql("SELECT pg_current_snapshot()::text").scalar_one()
        except Unavailable:
            self._drop()
            if not kept:
                raise
        return self._snapshot()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it may be broken in any way
                connection.invalidate()
                connection.close()
