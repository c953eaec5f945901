"""The tables as SQLModel rows. The migrations write the same columns by hand, and a test compares the two.

- A row has no behavior, validates nothing and never leaves `registry/server/`.
- JSON columns hold what canonical JSON or pydantic wrote; `manifest` holds the canonical bytes as text.

Every row is published here under its name, so that a new table is named once.
"""

# ruff: noqa: F403
from sqlmodel import SQLModel

from registry.server.database.models.access import *
from registry.server.database.models.audit import *
from registry.server.database.models.columns import *
from registry.server.database.models.content import *
from registry.server.database.models.jobs import *
from registry.server.database.models.serving import *

metadata = SQLModel.metadata
