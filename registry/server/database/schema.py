"""The schema's revision: which one the database has, which one this code needs, and migrations between them.

- `prepare` initializes an empty database and refuses an old or newer schema; only `migrate` changes one.
- One process migrates at a time, across machines. Each revision is a transaction of its own, so that no table stays
  locked while the next revision waits for its lock: servers of the previous schema go on working.
- A migration that was interrupted, or that gave way, continues where it stopped. Only an empty database gets all
  revisions in one transaction.
"""

import functools
import threading

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text

from registry.errors import Conflict
from registry.server.database import db, dialects
from registry.server.database.engine import SILENCE_SECONDS, require_limits
from registry.server.database.revision import migrations_folder

LOCK_MS = 2_000
"""How long a migration waits for a table. Everyone queues behind it meanwhile, so this is short."""
STEP_SECONDS = 3600
"""How long one statement of a migration may take."""
_LIMITS_MS = {"lock_timeout": LOCK_MS, "statement_timeout": 0, "idle_in_transaction_session_timeout": 0}
"""A large index takes minutes, and moving rows keeps the process busy between two statements."""
_ALEMBIC = threading.Lock()  # Alembic keeps the running migration in module globals


def alembic_config(connection: Connection | None = None) -> Config:
    """Configure Alembic with the migrations of the installed package, or those of the checkout."""
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


@functools.cache
def revisions() -> tuple[str, ...]:
    """All revisions that this code knows, oldest first."""
    return tuple(step.revision for step in ScriptDirectory.from_config(alembic_config()).walk_revisions())[::-1]


def newest_revision() -> str:
    """The revision that this code needs."""
    return revisions()[-1]


def revision_of(engine: Engine) -> str:
    """The revision of this database; empty if it has no schema."""
    with db.translate_errors(), engine.connect() as connection:
        return _revision(connection)


def _revision(connection: Connection) -> str:
    return MigrationContext.configure(connection).get_current_revision() or ""


def migrate(engine: Engine, revision: str = "head") -> str:
    """Migrate up to `revision` (or down to nothing for `base`); return the revision of the database afterwards.

    If a server holds a table for too long, it wins: `Unavailable`; the revisions applied before stay. `Conflict`
    (SCHEMA_OLD) for the schema of a newer program.
    """
    target = newest_revision() if revision == "head" else revision
    while (reached := _migrate_one_step(engine, target)) not in (target, ""):
        pass
    return reached


def _migrate_one_step(engine: Engine, target: str) -> str:
    with _ALEMBIC, db.translate_errors(), db.bind(engine, write=True).begin() as connection:
        dialect = dialects.of(connection)
        dialect.lock_names(connection, ["migrations"])
        if not dialect.is_file:
            for name, limit in _LIMITS_MS.items():
                connection.execute(text(f"SET LOCAL {name} = {limit}"))
            connection.info[SILENCE_SECONDS] = STEP_SECONDS
            connection.detach()  # the connection is closed afterwards, and its limit with it
        current = _revision(connection)
        if current and current not in revisions():
            raise _other_schema(current)
        if target == "base":
            command.downgrade(alembic_config(connection), target)
        elif current != target:
            command.upgrade(alembic_config(connection), "+1" if current else target)
        return _revision(connection)


def prepare(engine: Engine) -> str:
    """Initialize an empty database; return the revision. `Conflict` (SCHEMA_OLD) for a revision that is not ours.

    Servers may start at once: those that see no tables wait for the first one's migration. The tables are read before
    the revision, because both appear together: tables without a revision belong to another program.
    """
    require_limits(engine)
    with db.translate_errors():
        empty = not inspect(engine).get_table_names()
    if empty:
        return migrate(engine)
    current = revision_of(engine)
    if current != newest_revision():
        raise _other_schema(current)
    return current


def _other_schema(current: str) -> Conflict:
    newer = bool(current) and current not in revisions()
    return Conflict(
        "SCHEMA_OLD",
        f"the database schema is at {current or 'no revision'!r} and this program needs {newest_revision()!r}",
        next_step="use the newer program, or restore the backup from before its migration"
        if newer
        else "run `adapter migrate`",
    )
