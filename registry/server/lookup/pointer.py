"""`Pointers`: reads the `Pointer` behind a path of the look-up, in one statement.

Invariants
- Two equal pointers of one path mean equal answers: a version's row never changes but for its yank and its quarantine,
  and its newest verdict, the count of its quarantines, the generations of its alias and of access only grow.
- The statement is prepared once for each kind of selector and sent through the driver, without ORM and session.
- On SQLite it runs where it is asked, since it takes less time than a change of threads; on PostgreSQL in a thread.
"""

from __future__ import annotations

import functools
from typing import Any

from anyio import to_thread
from sqlalchemy import Engine, bindparam, func, literal_column, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col

from registry import names
from registry.digest import Digest
from registry.errors import RegistryError
from registry.names import Selector
from registry.server.access import epoch
from registry.server.catalog import versions
from registry.server.catalog.versions import Pointer
from registry.server.database import db
from registry.server.database.models import AdapterRow, AliasRow, VerdictRow, VersionRow

_KINDS = {"digest": col(VersionRow.digest), "number": col(VersionRow.number), "alias": col(AliasRow.alias)}
"""How a selector may name a version, and the column that it is compared with."""


class Pointers:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._own = engine.dialect.name == "sqlite"
        self._statements = {kind: _compiled(engine.dialect.name, kind) for kind in _KINDS}
        self._connection: Any = None

    async def now(self, path: list[str]) -> Pointer | None:
        """The pointer behind `[namespace, name, selector]`; None where there is none. `Unavailable`."""
        try:
            selector = names.selector(path[2])
        except RegistryError:
            return None
        statement, values = self._statements[_kind(selector)]
        values = {**values, "namespace": path[0], "name": path[1], "selector": _plain(selector)}
        if self._own:
            return self._ask_here(statement, values)
        return await to_thread.run_sync(self._ask_there, statement, values)

    def _ask_here(self, statement: str, values: dict[str, Any]) -> Pointer | None:
        with db.translate_errors():
            if self._connection is None:
                self._connection = self._engine.raw_connection()
            row = self._connection.cursor().execute(statement, values).fetchone()
        return _pointer(row)

    def _ask_there(self, statement: str, values: dict[str, Any]) -> Pointer | None:
        with db.translate_errors(), self._engine.connect() as connection:
            return _pointer(connection.exec_driver_sql(statement, values).fetchone())


@functools.cache
def _compiled(database: str, kind: str) -> tuple[str, dict[str, Any]]:
    """The statement in the words of this database's driver, and its values by name, those of the path to be filled."""
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
        .where(_KINDS[kind] == bindparam("selector"))
    )
    if by_alias:
        statement = statement.join(AliasRow, versions.points_at())
    style = "named" if database == "sqlite" else "pyformat"
    spoken = {"sqlite": sqlite, "postgresql": postgresql}[database].dialect(paramstyle=style)
    compiled = statement.compile(dialect=spoken)
    return str(compiled), dict(compiled.params)


def _kind(selector: Selector) -> str:
    if isinstance(selector, int):
        return "number"
    return "digest" if isinstance(selector, Digest) else "alias"


def _plain(selector: Selector) -> str | int:
    return selector if isinstance(selector, int) else str(selector)


def _pointer(row: Any) -> Pointer | None:
    return None if row is None else Pointer(row[0], row[1], row[2], row[3] is not None, row[4] or 0, row[5])
