"""Transactions, statements for many rows, and the server's clock.

- A `session()` is one transaction: it commits when the block ends and rolls back on an error.
- `dialects` says how one begins. `refuse_writes` rejects a write without a transaction, because nothing could undo it.
- A database that is away or busy raises `Unavailable` (DATABASE_UNAVAILABLE), whatever the driver calls it.
"""

import functools
import logging
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, cast

from pydantic import BaseModel
from sqlalchemy import Connection, Engine, SQLColumnExpression, event, func, insert, literal
from sqlalchemy.exc import (
    DatabaseError,
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import class_mapper
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.exc import StaleDataError
from sqlmodel import Session as Session
from sqlmodel import SQLModel, select

from registry.errors import Corrupt, Invalid, Unavailable
from registry.server.database import dialects
from registry.server.database.dialects import NO_TRANSACTION, TRANSACTION, Dialect

ViewType = TypeVar("ViewType", bound=BaseModel)
Row = TypeVar("Row", bound=SQLModel)
RETRY_AFTER_SECONDS = 2
CLOCK_TOLERANCE = timedelta(seconds=0.5)
"""Differences below this are ignored, so that times do not jump."""
_LOG = logging.getLogger("registry.server")
_LOCKS_OR_WRITES = re.compile(
    r"\A\s*(?:INSERT|UPDATE|DELETE)\b|\bFOR (?:NO KEY )?(?:UPDATE|SHARE|KEY SHARE)\b|_xact_lock"
)
READ_ONLY_SQLSTATE = "25006"
"""PostgreSQL's, of a standby."""
_ENDED_SQLSTATE = "25P03"
"""PostgreSQL's, for a transaction whose client was silent for too long: frozen, or cut off."""
_REJECTED_OPTION = "unsupported startup parameter"
"""What pgbouncer says to a client with an option that it does not know."""
_BUGS = ("number of parameters", "too many SQL variables")
"""Texts of drivers for statements that no database could execute. Trying again would not help."""
_FOREIGN_KEY_SQLSTATE = "23503"  # PostgreSQL's; on SQLite transactions that write are serial, so it would be a bug
_CAUSES = {
    "lock timeout": "is busy: another request holds what this one needs",
    "disk is full": "has no space left on its disk",
    "No space left on device": "has no space left on its disk",
}
"""Texts of drivers, and what they mean for the database."""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


_skew = timedelta(0)
"""How far the database's clock is ahead of this machine's."""


def now() -> datetime:
    """Return the current time, UTC and aware, by the database's clock: the only clock of all servers."""
    return _read_clock() + _skew


def clock_skew() -> timedelta:
    """How far the database's clock is ahead of this machine's, as far as it is followed."""
    return _skew


def _read_clock() -> datetime:
    return datetime.now(UTC)


def follow_clock(ask: Callable[[], datetime]) -> None:
    """Ask for the database's time, and follow its clock if that differs by more than the response took."""
    global _skew  # one process has one clock
    before = _read_clock()
    database_time = ask()
    delay = _read_clock() - before
    skew = database_time - (before + delay / 2)
    if abs(skew - _skew) > delay / 2 + CLOCK_TOLERANCE:
        _skew = skew
        _LOG.warning("this machine's clock differs by %.1f s from the database's, which counts", skew.total_seconds())


@contextmanager
def session(engine: Engine, *, write: bool = True) -> Iterator[Session]:
    """Run a transaction. Nothing is sent before the first statement, so an unused session costs nothing.

    With `write=False` it only reads, and takes no lock on SQLite. `begin_writing` turns it into one that writes.
    """
    with translate_errors(), Session(bind(engine, write=write), expire_on_commit=False) as transaction:
        yield transaction
        transaction.commit()


@functools.lru_cache(maxsize=8)
def bind(engine: Engine, *, write: bool) -> Engine:
    dialect = dialects.of(engine)
    return engine.execution_options(**(dialect.writing if write else dialect.reading))


def refuse_writes(connection: Connection, _cursor: Any, statement: str, _values: Any, context: Any, _many: Any) -> None:
    """RuntimeError for a statement that writes or locks on a connection without a transaction."""
    if connection.get_execution_options().get(TRANSACTION) != NO_TRANSACTION:
        return
    is_write = context is not None and (context.isinsert or context.isupdate or context.isdelete)
    if is_write or _LOCKS_OR_WRITES.search(statement):
        raise RuntimeError("a session that only reads was asked to write or to lock: call begin_writing first")


@contextmanager
def snapshot(engine: Engine) -> Iterator[Session]:
    """Run a transaction that only reads, and whose statements all see the same moment."""
    with session(engine, write=False) as transaction:
        transaction.connection(execution_options=dialects.of(engine).snapshot)
        yield transaction


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise the drivers' errors as ours: `Unavailable` for a missing or busy database, `Invalid` for a bad value."""
    try:
        yield
    except (IntegrityError, StaleDataError) as e:
        if isinstance(e, IntegrityError) and getattr(e.orig, "sqlstate", "") != _FOREIGN_KEY_SQLSTATE:
            raise
        raise _unavailable("TRY_LATER", "something that this request refers to has just changed or ended") from e
    except DataError as e:  # the API's types are narrower than the columns, so no check foresaw this value
        raise Invalid("REQUEST_INVALID", "the database cannot store a value of the request") from e
    except InternalError as e:
        details = {
            READ_ONLY_SQLSTATE: "the database is read-only: it is a standby, or is being moved",
            _ENDED_SQLSTATE: "the database ended a transaction, because this server was silent for too long",
        }
        detail = details.get(getattr(e.orig, "sqlstate", None) or "", "")
        if not detail:
            raise
        raise _unavailable("DATABASE_UNAVAILABLE", detail) from e
    except (DatabaseError, InterfaceError, PoolTimeout) as e:
        message = str(getattr(e, "orig", e))
        if getattr(e.orig if isinstance(e, DBAPIError) else e, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
            raise Corrupt(
                "DATABASE_DAMAGED",
                f"the database is damaged: {message}",
                next_step="restore it: adapter backup restore",
            ) from e
        cause = next((cause for words, cause in _CAUSES.items() if words in message), "")
        if _REJECTED_OPTION in message:
            raise Invalid(
                "SETTING_INVALID",
                f"REGISTRY_DATABASE_URL: a pooler rejects this server's session options: {message[-200:].strip()}",
                next_step="set `ignore_startup_parameters = options` in pgbouncer.ini",
            ) from e
        is_bug = any(words in message for words in _BUGS)
        if is_bug or (isinstance(e, DatabaseError) and not isinstance(e, OperationalError) and not cause):
            raise
        detail = f"the database {cause or 'cannot be reached or is too busy now'}"
        raise _unavailable("DATABASE_UNAVAILABLE", detail) from e


def _unavailable(code: str, detail: str) -> Unavailable:
    return Unavailable(code, detail, next_step="try again in a moment", retry_after_seconds=RETRY_AFTER_SECONDS)


def begin_writing(session: Session) -> None:
    """Turn a transaction that only read into one that writes. Call it before the first change.

    Read again what the write depends on: it may have changed. On SQLite this ends the read snapshot, because only the
    newest snapshot can write.
    """
    if session.new or session.dirty or session.deleted:
        raise RuntimeError("begin_writing was called after a change")
    options, writing = _options(session), dialects.of(session).writing
    if not writing.items() <= options.items():
        _begin_again(session, writing)


def begin_transaction(session: Session) -> None:
    """Turn a session on PostgreSQL that only reads into a transaction, which a cursor of the server needs."""
    if _options(session).get(TRANSACTION) == NO_TRANSACTION:
        _begin_again(session, dialects.POSTGRESQL.writing)


def _options(session: Session) -> Mapping[str, Any]:
    return (session.connection() if session.in_transaction() else session.get_bind()).get_execution_options()


def _begin_again(session: Session, options: Mapping[str, str]) -> None:
    if session.in_transaction():
        session.commit()
    session.connection(execution_options=options)


def lock_names(session: Session, *names: str) -> None:
    """Wait until this transaction is the only one that has locked one of these names; read after it what they protect.

    A count at its limit needs it: rows that others have not committed are not in it.
    """
    dialects.of(session).lock_names(session.connection(), names)


def commit_early(session: Session) -> None:
    """Commit rows that must be durable before a request moves bytes. The next statement begins another transaction."""
    session.commit()


def before_first_statement(session: Session, action: Callable[[Connection], None]) -> None:
    """Call `action` when this session's first transaction has begun, in the thread that began it.

    For what must come before everything else, without holding a connection while the session is idle.
    """
    event.listen(session, "after_begin", lambda _session, _transaction, connection: action(connection), once=True)


def to_view(row: SQLModel, view: type[ViewType], **values: Any) -> ViewType:
    """Build a view of the API from `values`, and from the row's columns for the other fields of these names."""
    columns = type(row).model_fields.keys() & view.model_fields.keys() - values.keys()
    return view(**{name: getattr(row, name) for name in columns}, **values)


def count_rows(session: Session, statement: Any) -> int:
    """How many rows a SELECT without a limit has."""
    return session.exec(select(func.count()).select_from(statement.subquery())).one()


_ONE = (literal(1),)


def insert_new(target: Session | Connection, table: type[SQLModel], values: Mapping[str, Any]) -> bool:
    """Insert a row unless its key exists; return whether it is new. A race never breaks the transaction."""
    connection = target if isinstance(target, Connection) else target.connection()
    statement = _build_insert_new(dialects.of(connection), table, _ONE)
    return connection.execute(statement, dict(values)).first() is not None


def insert_new_rows(
    session: Session,
    table: type[SQLModel],
    rows: Sequence[Mapping[str, Any]],
    *,
    returning: tuple[SQLColumnExpression[Any], ...],
) -> list[Any]:
    """Insert those rows whose keys do not exist, in the order given; return `returning` (constants) of the new ones."""
    connection = session.connection()
    statement = _build_insert_new(dialects.of(connection), table, returning)
    return list(connection.execute(statement, list(rows))) if rows else []


@functools.cache
def _build_insert_new(dialect: Dialect, table: type[SQLModel], returning: tuple[Any, ...]) -> Any:
    return dialect.module.insert(table).on_conflict_do_nothing().returning(*returning)


def update_rows(session: Session, statement: Any, rows: Sequence[Mapping[str, Any]]) -> int:
    """Execute an UPDATE with bound parameters for each of these rows at once; return how many rows it changed."""
    return session.connection().execute(statement, list(rows)).rowcount if rows else 0


def new_row(table: type[Row], **values: Any) -> Row:
    """A row for `bulk_insert`, at a fifth of the cost of its constructor, which sets one attribute at a time."""
    row: Row = cast(Any, class_mapper(table)).class_manager.new_instance()
    defaults, factories = _defaults_of(table)
    row.__dict__.update(defaults | {name: factory() for name, factory in factories if name not in values} | values)
    return row


@functools.cache
def _defaults_of(table: type[SQLModel]) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Column → its default, and columns with what makes their defaults. A column without one has to be given."""
    fields = table.model_fields.items()
    factories = {name: field.default_factory for name, field in fields if field.default_factory is not None}
    constants = {name: field.default for name, field in fields if name not in factories and not field.is_required()}
    return constants, list(factories.items())


def bulk_insert(session: Session, rows: Sequence[SQLModel]) -> None:
    """Insert rows of one table that do not change in this transaction, at a tenth of the cost of `add`.

    Rows that they refer to must be in the database already. An id that the database assigns stays None in `rows`.
    """
    if rows:
        statement, columns = _build_bulk_insert(type(rows[0]))
        session.connection().execute(statement, _column_values(rows, columns))


def bulk_insert_with_ids(session: Session, rows: Sequence[SQLModel], key: tuple[str, ...]) -> None:
    """Insert rows, and set the `id` that the database assigns to each. The columns `key` are unique."""
    if rows:
        statement, columns = _build_bulk_insert(type(rows[0]))
        table = type(rows[0]).__table__  # type: ignore[attr-defined]
        values = _column_values(rows, columns)
        by_key = {tuple(getattr(row, name) for name in key): row for row in rows}
        returning = statement.returning(table.c.id, *(table.c[name] for name in key))
        for row_id, *row_key in session.connection().execute(returning, values):
            set_committed_value(by_key[tuple(row_key)], "id", row_id)


def _column_values(rows: Sequence[SQLModel], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Column → value of each new row, past SQLAlchemy's attributes: a new row has all of its values."""
    return [{name: values[name] for name in columns} for values in map(vars, rows)]


@functools.cache
def _build_bulk_insert(model: type[SQLModel]) -> tuple[Any, list[str]]:
    table = model.__table__  # type: ignore[attr-defined]
    return insert(table), [column.key for column in table.columns if column is not table.autoincrement_column]


def upsert(
    target: Session | Connection,
    table: type[SQLModel],
    rows: Sequence[Mapping[str, Any]],
    *,
    on_conflict: tuple[tuple[str, SQLColumnExpression[Any]], ...],
    returning: tuple[SQLColumnExpression[Any], ...],
    where: SQLColumnExpression[bool] | None = None,
) -> list[Any]:
    """Insert rows, or update those whose keys exist; lock them in the order given; return `returning`, in any order.

    It is one statement whether or not the rows exist, so its duration does not tell. Rows that exist and do not fulfill
    `where` stay as they are and are not returned. Options are part of the cache key: pass constants.
    """
    connection = target if isinstance(target, Connection) else target.connection()
    statement = _build_upsert(dialects.of(connection), table, on_conflict, returning, where)
    return list(connection.execute(statement, list(rows))) if rows else []


@functools.lru_cache(maxsize=8)
def _build_upsert(
    dialect: Dialect, table: type[SQLModel], on_conflict: tuple[tuple[str, Any], ...], returning: tuple[Any, ...],
    where: Any,
) -> Any:  # fmt: skip
    key = list(table.__table__.primary_key.columns)  # type: ignore[attr-defined]
    statement = dialect.module.insert(table).on_conflict_do_update(
        index_elements=key, set_=dict(on_conflict), where=where
    )
    return statement.returning(*returning)
