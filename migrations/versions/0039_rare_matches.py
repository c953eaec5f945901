"""Indexes for lists that few adapters match, and for counts: of outcomes, of beginnings of names, of open pushes

Rule of this folder: see script.py.mako. On PostgreSQL the index of names is over `namespace/name` in the order of
bytes, whatever the collation; on SQLite the index of the unique name has that order. On PostgreSQL pushes wait while
the step indexes what is there. It locks the tables in the order in which commits of pushes write them, and against
writers only, so no transaction that has read one of them waits for it and it for none.

Revision: 0039
Follows: 0038
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0039"
down_revision = "0038"
branch_labels = None
depends_on = None

_OPEN = sa.text("state = 'open'")


def upgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        op.execute("CREATE INDEX ix_adapter_path ON adapter ((namespace || '/' || name) text_pattern_ops)")
    op.create_index("ix_push_open", "push", ["namespace"], postgresql_where=_OPEN, sqlite_where=_OPEN)
    op.create_index("ix_verdict_outcome", "verdict", ["check", "profile", "outcome", "version_id"])


def downgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        op.execute("LOCK TABLE adapter, push, verdict")
        op.execute("DROP INDEX ix_adapter_path")
    op.drop_index("ix_verdict_outcome", table_name="verdict")
    op.drop_index("ix_push_open", table_name="push")
