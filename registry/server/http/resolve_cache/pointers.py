"""`Pointers`: reads the `Pointer` of a resolve request with one statement.

- Equal pointers of one path mean equal responses. The row of a version changes only when it is withdrawn or restored;
  the id of its newest verdict, its count of quarantines, the generation of its alias and the access epoch only grow.
- The statement is compiled once per kind of selector and sent through the driver, without the ORM and a session.
- On SQLite it runs in the calling thread, since it is faster than a change of threads; on PostgreSQL in another one.
"""

import functools
from typing import Any

from anyio import to_thread
from sqlalchemy import Engine, bindparam, func, literal_column, select
from sqlmodel import col

from registry import names
from registry.digest import Digest, DigestPrefix
from registry.errors import RegistryError
from registry.names import Selector
from registry.server.access import epoch
from registry.server.catalog import versions
from registry.server.catalog.versions import Pointer
from registry.server.database import db, dialects
from registry.server.database.dialects import Dialect
from registry.server.database.models import AdapterRow, AliasRow, VerdictRow, VersionRow

_COLUMNS = {"digest": col(VersionRow.digest), "number": col(VersionRow.number), "alias": col(AliasRow.alias)}
"""Kind of a selector → the column that it is compared with."""


class Pointers:
    """Reads pointers from one database."""

    def __init__(self, engine: Engine) -> None:
        self._dialect = dialects.of(engine)
        self._engine = db.bind(engine, write=False)
        self._connection: Any = None

    async def read(self, path: list[str]) -> Pointer | None:
        """Return the pointer of `[namespace, name, selector]`, or None if there is none. `Unavailable`."""
        try:
            selector = names.selector(path[2])
        except RegistryError:
            return None
        if isinstance(selector, DigestPrefix):  # a version pushed since may begin with it, too
            return None
        statement, values = _compile(self._dialect, _kind_of(selector))
        value = selector if isinstance(selector, int) else str(selector)
        values = {**values, "namespace": path[0], "name": path[1], "selector": value}
        if self._dialect.is_file:
            return self._read_sqlite(statement, values)
        return await to_thread.run_sync(self._read_postgresql, statement, values)

    def _read_sqlite(self, statement: str, values: dict[str, Any]) -> Pointer | None:
        with db.translate_errors():
            if self._connection is None:
                self._connection = self._engine.raw_connection()
            row = self._connection.cursor().execute(statement, values).fetchone()
        return _pointer(row)

    def _read_postgresql(self, statement: str, values: dict[str, Any]) -> Pointer | None:
        with db.translate_errors(), self._engine.connect() as connection:
            return _pointer(connection.exec_driver_sql(statement, values).fetchone())


@functools.cache
def _compile(dialect: Dialect, kind: str) -> tuple[str, dict[str, Any]]:
    """Return the statement for this database's driver, and its parameters."""
    newest = select(func.max(VerdictRow.id)).where(col(VerdictRow.version_id) == col(VersionRow.id)).scalar_subquery()
    by_alias = kind == "alias"
    generation = col(AliasRow.generation) if by_alias else literal_column("0")
    statement = (
        select(
            epoch.current(),
            col(VersionRow.id),
            generation,
            col(VersionRow.yanked_at),
            newest,
            col(VersionRow.quarantine),
        )
        .select_from(VersionRow)
        .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
        .where(col(AdapterRow.namespace) == bindparam("namespace"), col(AdapterRow.name) == bindparam("name"))
        .where(_COLUMNS[kind] == bindparam("selector"))
    )
    if by_alias:
        statement = statement.join(AliasRow, versions.alias_points_at_version())
    compiled = statement.compile(dialect=dialect.module.dialect(paramstyle=dialect.paramstyle))
    return str(compiled), dict(compiled.params)


def _kind_of(selector: Selector) -> str:
    if isinstance(selector, int):
        return "number"
    return "digest" if isinstance(selector, Digest) else "alias"


def _pointer(row: Any) -> Pointer | None:
    return None if row is None else Pointer(row[0], row[1], row[2], row[3] is not None, row[4] or 0, row[5])
