"""The schema of the database: which one there is, which one this code needs, and the way from one to the other.

Invariants
- An empty database is initialised by `prepare`; an old or newer schema is refused; only `migrate` changes one.
- One migrator at a time, also of several machines. Each step is one transaction, so that no table stays locked while
  the next step waits for its own: servers of the schema before go on meanwhile.
- A migration that was broken off, or that gave way, goes on where it was. Only an empty database gets all at once.

Example
    >>> migrate(engine)
    '0014'
"""

from __future__ import annotations

import functools
import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text

from registry.errors import Conflict
from registry.server.database import db

LOCK_MS = 2_000
"""A migration that waits for a table makes everybody behind it wait: it must not for long."""
MIGRATOR = 0x61646170_6D696772  # the advisory lock of whoever migrates: "adapmigr"
_ALEMBIC = threading.Lock()  # it keeps what it runs in module globals: one migration at a time in a process


def alembic(connection: Connection | None = None) -> Config:
    """Alembic's configuration: the migrations inside the installed package, else those of the checkout."""
    server = Path(__file__).parent.parent
    folder = next(f for f in (server / "migrations", server.parent.parent / "migrations") if (f / "env.py").is_file())
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


@functools.cache
def revisions() -> tuple[str, ...]:
    """All schemas that this code knows, oldest first."""
    return tuple(step.revision for step in ScriptDirectory.from_config(alembic()).walk_revisions())[::-1]


def newest_revision() -> str:
    """The schema that this code expects."""
    return revisions()[-1]


def revision_of(engine: Engine) -> str:
    """The schema that this database has; empty for a database without one."""
    with db.database_errors(), engine.connect() as connection:
        return _revision(connection)


def _revision(connection: Connection) -> str:
    return MigrationContext.configure(connection).get_current_revision() or ""


def migrate(engine: Engine, revision: str = "head") -> str:
    """Move the schema up to `revision` (`base` moves it down to nothing); the revision that it is at afterwards.

    A server that is in the way for too long wins: `Unavailable` then, and the steps before stay. `Conflict`
    (SCHEMA_OLD) for the schema of a newer program.
    """
    target = newest_revision() if revision == "head" else revision
    while (found := _step(engine, target)) not in (target, ""):
        pass
    return found


def _step(engine: Engine, target: str) -> str:
    immediate = engine.execution_options(**{db.BEGIN: "IMMEDIATE"})
    with _ALEMBIC, db.database_errors(), immediate.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATOR})
            connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_MS}"))
        found = _revision(connection)
        if found and found not in revisions():
            raise _other(found)
        if target == "base":
            command.downgrade(alembic(connection), target)
        elif found != target:
            command.upgrade(alembic(connection), "+1" if found else target)
        return _revision(connection)


def prepare(engine: Engine) -> str:
    """Make the database ready to serve: initialise an empty one, refuse an old or newer schema.

    Servers may start at once: who finds no tables waits for the migrator and then has nothing left to do. The tables
    are looked at before the revision, because both appear together: tables without their revision are a stranger's.
    `Conflict` (SCHEMA_OLD) says which revision is there and which is expected.
    """
    with db.database_errors():
        empty = not inspect(engine).get_table_names()
    if empty:
        return migrate(engine)
    found = revision_of(engine)
    if found != newest_revision():
        raise _other(found)
    return found


def _other(found: str) -> Conflict:
    newer = bool(found) and found not in revisions()
    message = f"the database schema is at {found or 'no revision'!r} and this program needs {newest_revision()!r}"
    way_out = (
        "use the newer program, or restore the backup from before its migration" if newer else "run `adapter migrate`"
    )
    return Conflict("SCHEMA_OLD", message, next_step=way_out)
