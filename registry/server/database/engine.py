"""Creates the database engine and sets each connection up. `db` has what runs on it.

SQLite before 3.51.3 can corrupt a WAL database that several connections write. A newer one is used from pysqlite3 where
that is installed; otherwise the journal stays in its safe mode.
"""

import contextlib
import select
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import Connection, Dialect, ExceptionContext, create_engine, event, text
from sqlalchemy import Engine as Engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, InvalidatePoolError

from registry.errors import Corrupt, Invalid, Unavailable
from registry.server.database import db, dialects
from registry.server.database.db import READ_ONLY_SQLSTATE
from registry.server.database.dialects import BEGIN, NO_TRANSACTION, TRANSACTION
from registry.server.database.locks import SqliteWriteLock
from registry.server.settings import Settings, hide_secrets

try:
    import pysqlite3.dbapi2 as newer_sqlite
except ImportError:  # not on this platform
    newer_sqlite = None

WAL_IS_SAFE_SINCE = (3, 51, 3)
BUSY_SECONDS = 30
STATEMENT_LIMIT_MS = 30_000
LOCK_LIMIT_MS = 15_000
IDLE_LIMIT_MS = 10_000
"""How long a transaction may wait for its client: a replica that is frozen holds row locks no longer than this."""
CLOCK_SECONDS = 10.0
PING_AFTER_SECONDS = 1.0
_USED_AT = "used_at"
"""The key in a connection's `info` of when it was last used."""
SILENCE_SECONDS = "silence_seconds"
"""The key in a connection's `info` of a different limit from `HANG_SECONDS`."""
HANG_SECONDS = 65
REASON_LIMIT = 400
"""How long to wait for PostgreSQL to say anything: longer than it may take for any statement."""
_KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
"""Notice within 20 seconds that a database host is gone; Linux by default takes a quarter of an hour."""
SESSION_SETTINGS = {
    "timezone": "UTC",
    "jit": "off",  # compiling a recursive statement takes longer than running it
    "statement_timeout": str(STATEMENT_LIMIT_MS),
    "lock_timeout": str(LOCK_LIMIT_MS),
    "idle_in_transaction_session_timeout": str(IDLE_LIMIT_MS),
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
"""What PostgreSQL enforces on each connection, also against a client that is gone without a word."""
_LIMITS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
"""Those without which one server could stop the others."""


def open_database(settings: Settings) -> Engine:
    """Return the engine of `settings.database_url`. `Invalid` (SETTING_INVALID) for any other database."""
    try:
        url = make_url(settings.database_url)
    except (ArgumentError, ValueError):  # their texts quote a part of it
        raise Invalid("SETTING_INVALID", "REGISTRY_DATABASE_URL is not a URL of a database") from None
    if url.get_backend_name() == "sqlite":
        return _create_sqlite_engine(url)
    if url.get_backend_name() == "postgresql":
        return _create_postgresql_engine(url, settings.database_pool)
    raise Invalid(
        "SETTING_INVALID", f"REGISTRY_DATABASE_URL: {url.get_backend_name()!r} is neither 'sqlite' nor 'postgresql'"
    )


@contextmanager
def explain_failure(engine: Engine) -> Iterator[None]:
    """Add the database's address and the driver's reason to an error. For the operator, not for clients."""
    try:
        yield
    except Corrupt as e:
        url = hide_secrets(engine.url.render_as_string(hide_password=False))
        raise Corrupt(e.code, f"{url}: {e.detail}", next_step=e.next_step) from e
    except Unavailable as e:
        if e.code != "DATABASE_UNAVAILABLE" or e.__cause__ is None:
            raise
        reason = " ".join(str(getattr(e.__cause__, "orig", e.__cause__)).split())[:REASON_LIMIT]
        url = hide_secrets(engine.url.render_as_string(hide_password=False))
        raise Unavailable(e.code, f"{url}: {reason}", next_step="check REGISTRY_DATABASE_URL and the database") from e


def _create_postgresql_engine(url: URL, pool_size: int) -> Engine:
    options = " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items())
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=pool_size,
        max_overflow=pool_size,
        connect_args={"options": options, "connect_timeout": 10, "autocommit": True, **_KEEPALIVE},
    )
    event.listen(engine, "begin", _begin_postgresql)
    for level in ("connection", "engine"):
        event.listen(engine, f"set_{level}_execution_options", _refuse_isolation_level)
    event.listen(engine, "before_cursor_execute", db.refuse_writes)
    event.listen(engine, "connect", _require_utf8, insert=True)  # before SQLAlchemy reads a text
    event.listen(engine, "connect", _limit_silence)
    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "checkout", _Ping(engine.dialect))
    event.listen(engine, "checkout", _ClockReader(engine.dialect.loaded_dbapi.Error))

    @event.listens_for(engine, "handle_error")
    def _reconnect_after_failover(context: ExceptionContext) -> None:
        """After a failover the pooled connections lead to the old server, which only reads: replace them all."""
        if getattr(context.original_exception, "sqlstate", "") == READ_ONLY_SQLSTATE:
            context.is_disconnect = True

    return engine


def _begin_postgresql(connection: Connection) -> None:
    """Begin a transaction, which the driver of an `autocommit` connection leaves to this function."""
    mode = connection.get_execution_options().get(TRANSACTION, "")
    if mode != NO_TRANSACTION:
        connection.exec_driver_sql(f"BEGIN {mode}")


def _refuse_isolation_level(_target: Any, options: dict[str, Any]) -> None:
    """RuntimeError: with this option SQLAlchemy leaves connections of the pool in transactions that no one ends."""
    if "isolation_level" in options:
        raise RuntimeError(f"isolation_level is not for this engine: set {TRANSACTION}")


def require_limits(engine: Engine) -> None:
    """`Invalid` (SETTING_INVALID) if sessions have no limits: a pooler in between drops what this server asks for."""
    if dialects.of(engine).is_file:
        return
    statement = text("SELECT name FROM pg_settings WHERE name = ANY(:names) AND setting = '0'")
    with db.translate_errors(), engine.connect() as connection:
        absent = sorted(connection.execute(statement, {"names": list(_LIMITS)}).scalars())
        role = connection.execute(text("SELECT current_user")).scalar()
    if absent:
        commands = "; ".join(f'ALTER ROLE "{role}" SET {name} = {SESSION_SETTINGS[name]}' for name in absent)
        raise Invalid(
            "SETTING_INVALID",
            f"REGISTRY_DATABASE_URL: sessions have no {', '.join(absent)}, because a pooler drops the startup options",
            next_step=f"set them for the role: {commands}",
        )


def _note_use(_connection: Any, record: Any) -> None:
    record.info[_USED_AT] = time.monotonic()


class _Ping:
    """Asks at a checkout whether a connection still works: if it was idle for a while, or if its socket is readable.

    That is the socket of a connection which the database closed. `pool_pre_ping` asks at every checkout, which takes a
    request two statements more.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    def __call__(self, connection: Any, record: Any, *_: Any) -> None:
        used_at = record.info.get(_USED_AT)
        if used_at is None:
            return
        try:
            if time.monotonic() - used_at >= PING_AFTER_SECONDS or _is_readable(connection):
                self._dialect.do_ping(connection)
        except self._dialect.loaded_dbapi.Error as e:
            raise InvalidatePoolError from e


def _is_readable(connection: Any) -> bool:
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class _ClockReader:
    """Compares the clocks at the first checkout of a connection, and then every `CLOCK_SECONDS`."""

    def __init__(self, error: type[Exception]) -> None:
        self._error = error
        self._due = float("-inf")

    def __call__(self, connection: Any, *_: Any) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + CLOCK_SECONDS
        with contextlib.suppress(self._error):  # the next statement will say what is wrong
            db.follow_clock(lambda: connection.execute("SELECT clock_timestamp()").fetchone()[0])
            connection.rollback()


def _require_utf8(connection: Any, _record: Any) -> None:
    """`Invalid` (SETTING_INVALID) for a database that does not store text as UTF-8: the driver would return bytes."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        connection.close()
        raise Invalid(
            "SETTING_INVALID",
            f"REGISTRY_DATABASE_URL: the encoding of the database is {encoding}, not UTF8",
            next_step="create it with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0",
        )


def _limit_silence(connection: Any, record: Any) -> None:
    """Limit how long a connection waits: a stopped PostgreSQL, or one with a stopped disk, keeps it open and silent."""
    wait = connection.wait

    def wait_with_limit(gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            limit = record.info.get(SILENCE_SECONDS, HANG_SECONDS)
            return wait(gen, interval, limit if timeout is None else timeout)
        except Exception:
            if connection.info.transaction_status.name == "ACTIVE":  # the response may still come, after its request
                connection.close()
            raise

    connection.wait = wait_with_limit


def _create_sqlite_engine(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise Invalid("SETTING_INVALID", "REGISTRY_DATABASE_URL: SQLite needs a file, because threads share it")
    Path(url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    module = _choose_sqlite_module()
    journal = "WAL" if module.sqlite_version_info >= WAL_IS_SAFE_SINCE else "DELETE"
    engine = create_engine(url, module=module, pool_size=8, max_overflow=64, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions itself: `_begin` does
        connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    write_lock = SqliteWriteLock(engine)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if connection.get_execution_options().get(BEGIN) == "IMMEDIATE":
            write_lock.begin(connection)
        else:
            connection.exec_driver_sql("BEGIN DEFERRED")

    return engine


def _choose_sqlite_module() -> ModuleType:
    if sqlite3.sqlite_version_info >= WAL_IS_SAFE_SINCE or newer_sqlite is None:
        return sqlite3
    module: ModuleType = newer_sqlite
    return module
