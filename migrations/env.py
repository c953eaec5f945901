"""How Alembic runs here: on the connection that `registry.server.database.schema` passes, or on REGISTRY_DATABASE_URL.

- A run is one transaction on both databases; `registry.server.database.schema` makes one run of each step.
- On PostgreSQL one run at a time holds an advisory lock, and no statement waits or works for long: a migration that
  queues behind a long query would make every later query wait behind it. How long it waits for a table is said by
  `registry.server.database.schema`.
"""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import Connection, create_engine, text

from registry.server.database import tables

LOCK_TIMEOUT = "2s"
STATEMENT_TIMEOUT = "60s"
ADVISORY_LOCK = 0x61646170746572  # "adapter"


given = context.config.attributes.get("connection")


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=tables.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
            if given is None:
                connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
            connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'"))
        context.run_migrations()


if given is not None:
    run(given)
else:
    with create_engine(os.environ["REGISTRY_DATABASE_URL"]).begin() as opened:
        run(opened)
