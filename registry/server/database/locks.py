"""Locks between processes (`ProcessLock`) and between the writing threads of one process (`SqliteWriteLock`)."""

import contextlib
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event, text
from sqlmodel import Session

from registry.errors import Unavailable
from registry.server.database import db, dialects

LOCK_SECONDS = 15
"""How long a process that is frozen or cut off keeps a lock."""
RENEW_SECONDS = 4.0
CHECK_SECONDS = 1.0
WRITE_LOCK_SECONDS = 30
_ACQUIRE = text(
    "INSERT INTO process_lock (name, number, holder, expires_at)"
    " VALUES (:name, 1, :holder, clock_timestamp() + make_interval(secs => :seconds))"
    " ON CONFLICT (name) DO UPDATE SET number = process_lock.number + 1, holder = excluded.holder,"
    " expires_at = clock_timestamp() + make_interval(secs => :seconds)"
    " WHERE process_lock.expires_at <= clock_timestamp() RETURNING number"
)
_RENEW = text(
    "UPDATE process_lock SET expires_at = clock_timestamp() + make_interval(secs => :seconds)"
    " WHERE name = :name AND number = :number"
)
_SELECT = text("SELECT holder, number, expires_at > clock_timestamp() AS is_held FROM process_lock WHERE name = :name")
_GUARD = text("SELECT 1 FROM process_lock WHERE name = :name AND number = :number FOR SHARE")


class ProcessLock:
    """A lock that one process of all servers of a database holds.

    On SQLite it is a lock on a file beside the database, which ends with the process. On PostgreSQL it is a row with an
    expiry by the database's clock, so that a frozen process stops no one for longer than `LOCK_SECONDS`, and a pooler
    may stand in between. Each holder gets a higher number, and `guard` checks it: a process that wakes up after another
    one took over writes nothing.
    """

    def __init__(self, engine: Engine | None = None, name: str = "", number: int = 0) -> None:
        self._engine = engine
        self._key = {"name": name, "number": number}
        self._renewed = time.monotonic()

    def check(self) -> None:
        """Call this before each step outside of the database. `Unavailable` (TRY_LATER) if another process took over.

        It asks the database, and renews the lock, at most once a second.
        """
        if time.monotonic() - self._renewed >= CHECK_SECONDS:
            self._renew()

    def guard(self, session: Session) -> None:
        """Call this in each transaction that writes what the lock protects. No one takes over before that ends.

        `Unavailable` (TRY_LATER) if another process has taken over.
        """
        if self._engine is not None and session.connection().execute(_GUARD, self._key).first() is None:
            raise self._lost()

    def _renew(self) -> None:
        if self._engine is not None:
            with db.translate_errors(), self._engine.begin() as connection:
                if not connection.execute(_RENEW, {**self._key, "seconds": LOCK_SECONDS}).rowcount:
                    raise self._lost()
        self._renewed = time.monotonic()

    def _lost(self) -> Unavailable:
        detail = f"this process was away for too long, and another {self._key['name']} took over"
        return Unavailable("TRY_LATER", detail, next_step="try again in a moment", retry_after_seconds=5)

    def keep(self, ended: threading.Event) -> None:
        """Renew the lock until `ended` is set. A frozen process does not, which is the point."""
        while not ended.wait(RENEW_SECONDS):
            with contextlib.suppress(Unavailable):  # `check` and `guard` will notice
                self._renew()


@contextmanager
def acquire(engine: Engine, name: str) -> Iterator[ProcessLock]:
    """Hold the lock of this name. `Unavailable` (TRY_LATER) while another process holds it."""
    with _lock_file(engine, name) if dialects.of(engine).is_file else _lock_row(engine, name) as lock:
        yield lock


@contextmanager
def _lock_file(engine: Engine, name: str) -> Iterator[ProcessLock]:
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
        yield ProcessLock()
    finally:
        os.close(descriptor)


@contextmanager
def _lock_row(engine: Engine, name: str) -> Iterator[ProcessLock]:
    values = {"name": name, "holder": _describe_process(os.getpid()), "seconds": LOCK_SECONDS}
    with db.translate_errors(), engine.begin() as connection:
        row = connection.execute(_SELECT, values).first()
        if row is not None and row.is_held:  # without a lock on the row, which its holder may have for some time
            if not _is_gone(row.holder):
                raise _held(name)
            connection.execute(_RENEW, {"name": name, "number": row.number, "seconds": 0})
        number = connection.execute(_ACQUIRE, values).scalar()
        if number is None:  # another process was faster
            raise _held(name)
    lock, ended = ProcessLock(engine, name, number), threading.Event()
    renewal = threading.Thread(target=lock.keep, args=(ended,), name=f"lock {name}", daemon=True)
    renewal.start()
    try:
        yield lock
    finally:
        ended.set()
        renewal.join()  # a renewal after the release would lock out everyone
        with contextlib.suppress(Unavailable), db.translate_errors(), engine.begin() as connection:  # or it expires
            connection.execute(_RENEW, {"name": name, "number": number, "seconds": 0})


def _describe_process(pid: int) -> str:
    """Name a process uniquely among all machines, containers and restarts; empty if it has ended, or without /proc."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return f"{socket.gethostname()} {boot_id} {namespace} {pid} {status[19]}" if status[0] != "Z" else ""


def _is_gone(holder: str) -> bool:
    """Whether the holder ran here and has ended, so that a server that was killed and restarted need not wait."""
    theirs, ours = holder.split(), _describe_process(os.getpid()).split()
    return len(theirs) == 5 and theirs[:3] == ours[:3] and _describe_process(int(theirs[3])) != holder


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
    spend a good part of its time asleep while no one writes. Other processes are still kept out by SQLite's own lock,
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
