"""What SQLite and PostgreSQL do differently: one `Dialect` each, which `of` finds for a session.

- A transaction that writes takes SQLite's write lock when it begins (BEGIN IMMEDIATE), never half-way through.
- On PostgreSQL a session that only reads has no transaction: at READ COMMITTED each statement has its own snapshot,
  and BEGIN and COMMIT cost a round trip each.
- SQLite has one writer at a time, so a transaction that writes needs no locks of names.

Operators that SQLAlchemy itself compiles for each database are in `expressions`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlmodel import Session, col, select

from registry.server.database.models import ADAPTER_PATH, TEXT_INDEX, TEXT_VECTOR, AdapterRow, AdapterTextRow

BEGIN = "sqlite_begin"
"""The execution option that says how a transaction begins on SQLite: DEFERRED or IMMEDIATE."""
TRANSACTION = "postgresql_transaction"
"""The execution option that says how a transaction begins on PostgreSQL: what follows BEGIN, or `NO_TRANSACTION`."""
NO_TRANSACTION = "none"
_AFTER_EVERY_NAME = "~"
"""Sorts by bytes after every character of a name."""
_LOCK_KEYS = sa.text(
    "SELECT pg_advisory_xact_lock(key) FROM (SELECT hashtextextended(name, 0) AS key"
    " FROM unnest(CAST(:names AS text[])) AS name ORDER BY key) AS ordered"
)
_SQLITE_INDEX = sa.table(TEXT_INDEX, sa.column("rowid"), sa.column(TEXT_INDEX))


class Dialect(ABC):
    """`is_file`: the database is a file of this machine, for one server process.

    `reading`, `writing`, `snapshot`: execution options of a transaction that only reads, that writes, and whose
    statements all see the same moment. `recursive_parts`: a recursive statement may have several recursive parts.
    """

    name: str
    paramstyle: str
    is_file: bool
    recursive_parts: bool
    reading: Mapping[str, str]
    writing: Mapping[str, str]
    snapshot: Mapping[str, str]

    @property
    def module(self) -> Any:
        """SQLAlchemy's module of this database. The other one's would take 20 ms to import."""
        return getattr(sa.dialects, self.name)

    @abstractmethod
    def lock_names(self, connection: Connection, names: Sequence[str]) -> None:
        """Wait until this transaction is the only one that has locked one of these names."""

    @abstractmethod
    def without_key(self, column: sa.ColumnElement[Any], key: str) -> sa.ColumnElement[Any]:
        """A column of JSON without a key of its object."""

    @abstractmethod
    def adapters_beginning(self, prefix: str) -> list[sa.ColumnElement[bool]]:
        """Conditions, by an index, that `namespace/name` of an adapter begins with this text."""

    @abstractmethod
    def position_of(self, text: Any, part: str) -> sa.ColumnElement[int]:
        """Where a part begins in a text, from 1; 0 if it is not in it."""

    @abstractmethod
    def look_up(self, words: Sequence[tuple[str, bool]]) -> tuple[Any, sa.ColumnElement[bool]]:
        """The column of ids in the text index, and the condition that a row has all words, none with quotation marks.

        Each word is given with whether it may be the beginning of a longer one.
        """


class _Sqlite(Dialect):
    name, paramstyle = "sqlite", "named"
    is_file = recursive_parts = True
    reading = snapshot = {BEGIN: "DEFERRED"}
    writing = {BEGIN: "IMMEDIATE"}

    def lock_names(self, connection: Connection, names: Sequence[str]) -> None:
        pass

    def without_key(self, column: sa.ColumnElement[Any], key: str) -> sa.ColumnElement[Any]:
        return sa.type_coerce(sa.func.json_remove(column, f"$.{key}"), sa.JSON)

    def adapters_beginning(self, prefix: str) -> list[sa.ColumnElement[bool]]:
        namespace, slash, name = prefix.partition("/")
        column, beginning = (col(AdapterRow.name), name) if slash else (col(AdapterRow.namespace), namespace)
        within = [col(AdapterRow.namespace) == namespace] if slash else []
        return [*within, column >= beginning, column < beginning + _AFTER_EVERY_NAME]

    def position_of(self, text: Any, part: str) -> sa.ColumnElement[int]:
        return sa.func.instr(text, part, type_=sa.Integer)

    def look_up(self, words: Sequence[tuple[str, bool]]) -> tuple[Any, sa.ColumnElement[bool]]:
        query = " ".join(f'"{word}"{"*" if is_prefix else ""}' for word, is_prefix in words)
        return _SQLITE_INDEX.c.rowid, _SQLITE_INDEX.c[TEXT_INDEX].bool_op("MATCH")(query)


class _Postgresql(Dialect):
    name, paramstyle = "postgresql", "pyformat"
    is_file = recursive_parts = False
    reading = {TRANSACTION: NO_TRANSACTION}
    writing = {TRANSACTION: ""}
    snapshot = {TRANSACTION: "ISOLATION LEVEL REPEATABLE READ"}

    def lock_names(self, connection: Connection, names: Sequence[str]) -> None:
        connection.execute(_LOCK_KEYS, {"names": list(names)})

    def without_key(self, column: sa.ColumnElement[Any], key: str) -> sa.ColumnElement[Any]:
        is_object = sa.func.json_typeof(column) == "object"
        fields = sa.func.json_each(sa.case((is_object, column))).table_valued("key", "value")
        merged = sa.type_coerce(sa.func.json_object_agg(fields.c.key, fields.c.value), sa.JSON)
        return select(merged).where(fields.c.key != key).scalar_subquery()

    def adapters_beginning(self, prefix: str) -> list[sa.ColumnElement[bool]]:
        path: sa.ColumnElement[str] = sa.literal_column(ADAPTER_PATH)  # in the order of bytes, whatever the collation
        return [path.bool_op("~>=~")(prefix), path.bool_op("~<~")(prefix + _AFTER_EVERY_NAME)]

    def position_of(self, text: Any, part: str) -> sa.ColumnElement[int]:
        return sa.func.strpos(text, part, type_=sa.Integer)

    def look_up(self, words: Sequence[tuple[str, bool]]) -> tuple[Any, sa.ColumnElement[bool]]:
        query = " & ".join(f"'{word}'{':*' if is_prefix else ''}" for word, is_prefix in words)
        matches = sa.literal_column(TEXT_VECTOR).bool_op("@@")(sa.cast(query, self.module.TSQUERY))
        return col(AdapterTextRow.adapter_id), matches


SQLITE, POSTGRESQL = _Sqlite(), _Postgresql()
_BY_NAME: dict[str, Dialect] = {dialect.name: dialect for dialect in (SQLITE, POSTGRESQL)}


def of(bind: Session | Connection | Engine) -> Dialect:
    """The dialect of a session's database."""
    return _BY_NAME[(bind.get_bind() if isinstance(bind, Session) else bind).dialect.name]
