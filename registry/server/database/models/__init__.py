"""The tables as SQLModel rows. The migrations write the same columns by hand, and a test compares the two.

- A row has no behavior, validates nothing and never leaves `registry/server/`.
- JSON columns hold what canonical JSON or pydantic wrote; `manifest` holds the canonical bytes as text.
- A table takes 2 ms of every command on the embedded registry. Those that most commands need are published here, the
  others by their modules. `registry.server.database.tables` imports all.
- Options of indexes that only PostgreSQL knows are in the migrations: naming them here would import its dialect.
"""

# ruff: noqa: F403
from registry.server.database.models.access import *
from registry.server.database.models.audit import *
from registry.server.database.models.columns import *
from registry.server.database.models.content import *
