"""The database: engine, the transaction, `now()`. The only room that knows SQLite from PostgreSQL.

Invariants
- One transaction per `session()`; it commits when the block ends well and rolls back otherwise. Doors never commit.
- A transaction that writes takes SQLite's write lock when it begins (BEGIN IMMEDIATE), never half-way through.
- SQLite before 3.51.3 can corrupt a WAL database with several connections: a newer one is taken from pysqlite3
  where it is installed, else the journal stays in its safe mode.
- A database that is away or busy is `Unavailable` (DATABASE_UNAVAILABLE), whatever the driver calls it.

Example
    >>> with session(engine) as s:
    ...     s.add(row)
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import Connection, ExceptionContext, SQLColumnExpression, create_engine, event, insert, literal, text
from sqlalchemy import Engine as Engine
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, DataError, IntegrityError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm.exc import StaleDataError
from sqlmodel import Session as Session
from sqlmodel import SQLModel

from registry.errors import Invalid, Unavailable
from registry.server.database.writers import Writers
from registry.server.settings import Settings

try:
    import pysqlite3.dbapi2 as newer_sqlite
except ImportError:  # not on this platform
    newer_sqlite = None

WAL_IS_SAFE_SINCE = (3, 51, 3)
BUSY_SECONDS = 30
STATEMENT_LIMIT_MS = 30_000
LOCK_LIMIT_MS = 15_000
HANG_SECONDS = 65
"""Longer than PostgreSQL may take for any statement: who hears nothing for so long will hear nothing."""
RETRY_AFTER_SECONDS = 2
_LOST = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
"""A database host that is gone without a word is noticed in 20 seconds; Linux by itself takes a quarter of an hour."""
_AGAIN = "try again in a moment"
_TOLD = {
    "disk is full": "has no room left on its disk",
    "No space left on device": "has no room left on its disk",
    "disk image is malformed": "has a damaged file, or a disk that cannot be read: look at that first",
    "file is not a database": "is a file that is none",
}
"""What drivers say, and what we say of the database then."""
BEGIN = "sqlite_begin"
"""The execution option that says how a transaction begins on SQLite: DEFERRED or IMMEDIATE."""
_READ_ONLY = "25006"  # PostgreSQL's, of a standby
_HANGS_ON_NOTHING = "23503"  # PostgreSQL's; on SQLite writers take turns, and it would be a bug


def now() -> datetime:
    """This moment, UTC and aware: the only clock of the server."""
    return datetime.now(UTC)


def engine(settings: Settings) -> Engine:
    """The engine of `settings.database_url`. `Invalid` (SETTING_INVALID) for a database that we do not know."""
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(settings.database_url)
    if url.get_backend_name() != "postgresql":
        raise Invalid(
            "SETTING_INVALID",
            f"REGISTRY_DATABASE_URL: {url.get_backend_name()!r} is neither 'sqlite' nor 'postgresql'",
        )
    # No JIT: our statements are short, and compiling a recursive one takes longer than it does.
    options = f"-c timezone=UTC -c jit=off -c statement_timeout={STATEMENT_LIMIT_MS} -c lock_timeout={LOCK_LIMIT_MS}"
    made = create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=settings.database_pool,
        max_overflow=settings.database_pool,
        pool_pre_ping=True,
        connect_args={"options": options, "connect_timeout": 10, **_LOST},
    )

    event.listen(made, "connect", _answers_in_time)

    @event.listens_for(made, "handle_error")
    def _elsewhere(context: ExceptionContext) -> None:
        """After a failover the connections that are kept lead to the old server: all are opened anew."""
        if getattr(context.original_exception, "sqlstate", "") == _READ_ONLY:
            context.is_disconnect = True

    return made


def _answers_in_time(connection: Any, _record: Any) -> None:
    """A PostgreSQL that is stopped, or whose disk is, keeps the line and says nothing: nobody waits for ever."""
    wait = connection.wait

    def waiting(gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return wait(gen, interval, HANG_SECONDS if timeout is None else timeout)
        except Exception:
            if connection.info.transaction_status.name == "ACTIVE":  # the answer may still come: to nobody
                connection.close()
            raise

    connection.wait = waiting


def _sqlite_engine(url: str) -> Engine:
    database = make_url(url).database
    if not database or database == ":memory:":
        raise Invalid("SETTING_INVALID", "REGISTRY_DATABASE_URL: SQLite needs a file, because threads share it")
    Path(database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # what it tells is for its owner alone
    module = _sqlite_module()
    safe = module.sqlite_version_info >= WAL_IS_SAFE_SINCE
    made = create_engine(url, module=module, pool_size=8, max_overflow=64, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(made, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own: `_begin` does
        connection.execute(f"PRAGMA journal_mode={'WAL' if safe else 'DELETE'}")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    writers = Writers(made)

    @event.listens_for(made, "begin")
    def _begin(connection: Connection) -> None:
        if connection.get_execution_options().get(BEGIN) == "IMMEDIATE":
            writers.begin(connection)
        else:
            connection.exec_driver_sql("BEGIN DEFERRED")

    return made


def _sqlite_module() -> ModuleType:
    if sqlite3.sqlite_version_info >= WAL_IS_SAFE_SINCE or newer_sqlite is None:
        return sqlite3
    found: ModuleType = newer_sqlite
    return found


@contextmanager
def session(engine: Engine, *, write: bool = True) -> Iterator[Session]:
    """One transaction. Nothing is sent before the first statement, so an unused session costs nothing.

    `write=False` only reads: on SQLite it takes no lock. `begin_writing` turns it into one that writes.
    """
    bind = engine.execution_options(**{BEGIN: "IMMEDIATE" if write else "DEFERRED"})
    with database_errors(), Session(bind, expire_on_commit=False) as opened:
        yield opened
        opened.commit()


@contextmanager
def database_errors() -> Iterator[None]:
    """The drivers' errors as ours: a missing or busy database is `Unavailable`, a value it cannot hold `Invalid`."""
    try:
        yield
    except (IntegrityError, StaleDataError) as e:
        if isinstance(e, IntegrityError) and getattr(e.orig, "sqlstate", "") != _HANGS_ON_NOTHING:
            raise
        code, message = "TRY_LATER", "something that this is about ended or changed in the same moment"
        raise Unavailable(code, message, next_step=_AGAIN, retry_after_seconds=RETRY_AFTER_SECONDS) from e
    except DataError as e:  # our types are narrower than the columns, so this is a value that no check foresaw
        raise Invalid("REQUEST_INVALID", "a value of the request cannot be stored by the database") from e
    except InternalError as e:
        if getattr(e.orig, "sqlstate", "") != _READ_ONLY:
            raise
        code, message = "DATABASE_UNAVAILABLE", "the database only reads now: a standby, or one that is being moved"
        raise Unavailable(code, message, next_step=_AGAIN, retry_after_seconds=RETRY_AFTER_SECONDS) from e
    except (DatabaseError, InterfaceError, PoolTimeout) as e:
        told = str(getattr(e, "orig", e))
        why = next((why for words, why in _TOLD.items() if words in told), "")
        if isinstance(e, DatabaseError) and not isinstance(e, OperationalError) and not why:
            raise
        code, message = "DATABASE_UNAVAILABLE", f"the database {why or 'cannot be reached or is too busy now'}"
        raise Unavailable(code, message, next_step=_AGAIN, retry_after_seconds=RETRY_AFTER_SECONDS) from e


def begin_writing(session: Session) -> None:
    """From reading to writing: for a door that reads and judges for long before its first row.

    What was read may have changed meanwhile; read again what the write depends on. On SQLite this ends the read
    snapshot, because a snapshot that is no longer the newest cannot write. Call it before the first change.
    """
    if session.new or session.dirty or session.deleted:
        raise RuntimeError("begin_writing was called after a change")
    if session.get_bind().dialect.name != "sqlite":
        return
    if session.in_transaction():
        session.commit()
    session.connection(execution_options={BEGIN: "IMMEDIATE"})


def settle(session: Session) -> None:
    """Make durable what was written so far, and hold no transaction from here on until the next statement.

    For a door whose promise must stand before bytes move: the row first, then the bytes, then the rest.
    """
    session.commit()


def insert_new(target: Session | Connection, table: type[SQLModel], values: Mapping[str, Any]) -> bool:
    """Insert a row unless its key is taken; whether it is new. Never breaks the transaction, safe under races."""
    connection = target if isinstance(target, Connection) else target.connection()
    return connection.execute(_insert_new(connection.dialect.name, table), dict(values)).first() is not None


@functools.cache
def _insert_new(dialect: str, table: type[SQLModel]) -> Any:
    """Made once: to put a statement together takes longer than to send it."""
    return _insert(dialect, table).on_conflict_do_nothing().returning(literal(1))


def _insert(dialect: str, table: type[SQLModel]) -> Any:
    return (sqlite.insert if dialect == "sqlite" else postgresql.insert)(table)


def append(session: Session, rows: Sequence[SQLModel]) -> None:
    """Insert rows of one table that nobody changes in this transaction: a tenth of what it costs to `add` them.

    What they hang on must be in the database by then. An id that the database gives stays None in `rows`.
    """
    if rows:
        statement, columns = _append(type(rows[0]))
        session.connection().execute(statement, [{name: getattr(row, name) for name in columns} for row in rows])


@functools.cache
def _append(table: type[SQLModel]) -> tuple[Any, list[str]]:
    found = table.__table__  # type: ignore[attr-defined]
    columns = [column.key for column in found.columns if column is not found.autoincrement_column]
    return insert(found), columns


def claim(
    target: Session | Connection,
    table: type[SQLModel],
    rows: Sequence[Mapping[str, Any]],
    *,
    otherwise: tuple[tuple[str, SQLColumnExpression[Any]], ...],
    tell: tuple[SQLColumnExpression[Any], ...],
) -> list[Any]:
    """Insert rows, or change those that have their keys; locked until the transaction ends. What `tell` is then.

    One statement whether or not they are there, so that nobody learns from how long it takes. They are locked in the
    order in which they are given; they are told in any. `otherwise` and `tell` are made once, as the statement is.
    """
    connection = target if isinstance(target, Connection) else target.connection()
    return list(connection.execute(_claim(connection.dialect.name, table, otherwise, tell), list(rows)))


@functools.lru_cache(maxsize=8)
def _claim(dialect: str, table: type[SQLModel], otherwise: tuple[tuple[str, Any], ...], tell: tuple[Any, ...]) -> Any:
    key = list(table.__table__.primary_key.columns)  # type: ignore[attr-defined]
    statement = _insert(dialect, table).on_conflict_do_update(index_elements=key, set_=dict(otherwise))
    return statement.returning(*tell)


def is_sqlite(session: Session) -> bool:
    """For the one statement whose form differs (walks.py)."""
    return session.get_bind().dialect.name == "sqlite"


def at_first(session: Session, act: Callable[[Connection], None]) -> None:
    """Call `act` when this session's first transaction has begun, in the thread that began it.

    For what must come before everything else, and must not hold a connection while nobody works with it.
    """

    event.listen(session, "after_begin", lambda _session, _transaction, connection: act(connection), once=True)


def ping(engine: Engine) -> None:
    """`Unavailable` unless the database answers."""
    with database_errors(), engine.connect() as connection:
        connection.execute(text("SELECT 1"))
