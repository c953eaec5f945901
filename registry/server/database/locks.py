"""Locks between processes (`AdvisoryLock`) and between the writing threads of one process (`SqliteWriteLock`)."""

from __future__ import annotations

import fcntl
import os
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, event, text

from registry.errors import Unavailable
from registry.server.database import db

CHECK_SECONDS = 1.0
WRITE_LOCK_SECONDS = 30
_KEYS = 0x61646170 << 32  # "adap"; the name's checksum follows


class AdvisoryLock:
    """A lock that one process of all servers of a database holds. It ends with the process, also when that is killed.

    On PostgreSQL it is an advisory lock on a connection of its own, on SQLite a lock on a file beside the database.
    """

    def __init__(self, connection: Connection | None = None) -> None:
        self._connection = connection
        self._checked = time.monotonic()

    def check(self) -> None:
        """Call this before each step that cannot be undone: `Unavailable` (DATABASE_UNAVAILABLE) if the lock is lost.

        It asks the database at most once a second.
        """
        if self._connection is None or time.monotonic() - self._checked < CHECK_SECONDS:
            return
        with db.translate_errors():
            self._connection.execute(text("SELECT 1"))
        self._checked = time.monotonic()


@contextmanager
def acquire(engine: Engine, name: str) -> Iterator[AdvisoryLock]:
    """Hold the lock of this name. `Unavailable` (TRY_LATER) while another process holds it."""
    with _lock_file(engine, name) if engine.dialect.name == "sqlite" else _lock_connection(engine, name) as lock:
        yield lock


@contextmanager
def _lock_file(engine: Engine, name: str) -> Iterator[AdvisoryLock]:
    try:
        descriptor = os.open(f"{engine.url.database}.{name}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise _unusable(e) from e
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise _held(name) from e
        except OSError as e:  # a network file system without locks
            raise _unusable(e) from e
        yield AdvisoryLock()
    finally:
        os.close(descriptor)


@contextmanager
def _lock_connection(engine: Engine, name: str) -> Iterator[AdvisoryLock]:
    key = {"key": _KEYS | zlib.crc32(name.encode())}
    with db.translate_errors(), engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), key).scalar():
            raise _held(name)
        try:
            yield AdvisoryLock(connection)
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), key)


def _held(name: str) -> Unavailable:
    return Unavailable(
        "TRY_LATER", f"another {name} is running", next_step="wait until it has finished", retry_after_seconds=5
    )


def _unusable(error: OSError) -> Unavailable:
    detail = f"cannot lock the file beside the database: {error.strerror}"
    return Unavailable("DATABASE_UNAVAILABLE", detail, next_step="check the disk of the database")


class SqliteWriteLock:
    """Queues the writing threads of one process, because SQLite makes them poll.

    SQLite has one writer at a time. The others sleep up to 0.1 s before each retry: of four pushes at once, each would
    spend a good part of its time asleep while nobody writes. Other processes are still kept out by SQLite's own lock,
    and a thread that has waited for `WRITE_LOCK_SECONDS` tries SQLite's lock all the same.

    The lock is released when the pool gets the connection back or loses it, so after a commit or rollback.
    """

    def __init__(self, engine: Engine) -> None:
        self._lock = threading.Lock()
        self._owner: Any = None
        """The driver's connection that holds the lock."""
        for name in ("checkin", "invalidate", "close"):
            event.listen(engine, name, self._release)

    def begin(self, connection: Connection) -> None:
        """Execute BEGIN IMMEDIATE on this connection once no other thread is writing."""
        driver_connection = connection.connection.dbapi_connection
        if driver_connection is not self._owner and self._lock.acquire(timeout=WRITE_LOCK_SECONDS):
            self._owner = driver_connection
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        except BaseException:
            self._release(driver_connection)
            raise

    def _release(self, driver_connection: Any, *_: Any) -> None:
        if driver_connection is not None and driver_connection is self._owner:
            self._owner = None
            self._lock.release()
