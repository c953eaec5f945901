"""`Turn`: one process at a time does a certain piece of upkeep, however many servers share the database.

Invariants
- On PostgreSQL a turn is an advisory lock of a connection of its own; on SQLite a lock on a file beside the database.
  Both end with the process that has them, also when it is killed.
- Whoever has a turn asks `check` before each step that cannot be undone: a lost connection is a lost turn.

Example
    >>> with turn.take(engine, "gc") as mine:
    ...     mine.check()
"""

from __future__ import annotations

import fcntl
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, text

from registry.errors import Unavailable
from registry.server.database import db

CHECK_SECONDS = 1.0
_KEYS = 0x61646170 << 32  # "adap"; the name's checksum follows


class Turn:
    """Says whether this process still has its turn."""

    def __init__(self, connection: Connection | None = None) -> None:
        self._connection = connection
        self._checked = time.monotonic()

    def check(self) -> None:
        """`Unavailable` (DATABASE_UNAVAILABLE) when the turn is lost. Asks the database at most once a second."""
        if self._connection is None or time.monotonic() - self._checked < CHECK_SECONDS:
            return
        with db.database_errors():
            self._connection.execute(text("SELECT 1"))
        self._checked = time.monotonic()


@contextmanager
def take(engine: Engine, name: str) -> Iterator[Turn]:
    """`Unavailable` (TRY_LATER) while somebody else has this turn."""
    with _on_file(engine, name) if engine.dialect.name == "sqlite" else _on_connection(engine, name) as mine:
        yield mine


@contextmanager
def _on_file(engine: Engine, name: str) -> Iterator[Turn]:
    try:
        handle = os.open(f"{engine.url.database}.{name}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise _unusable(e) from e
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise _taken(name) from e
        except OSError as e:  # a network file system without locks
            raise _unusable(e) from e
        yield Turn()
    finally:
        os.close(handle)


@contextmanager
def _on_connection(engine: Engine, name: str) -> Iterator[Turn]:
    key = {"key": _KEYS | zlib.crc32(name.encode())}
    with db.database_errors(), engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), key).scalar():
            raise _taken(name)
        try:
            yield Turn(connection)
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), key)


def _taken(name: str) -> Unavailable:
    return Unavailable("TRY_LATER", f"another {name} is running", next_step="let it end first", retry_after_seconds=5)


def _unusable(error: OSError) -> Unavailable:
    message = f"the lock beside the database cannot be used: {error.strerror}"
    return Unavailable("DATABASE_UNAVAILABLE", message, next_step="look at the disk of the database")
