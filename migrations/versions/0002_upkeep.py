"""What garbage collection, checking and re-indexing need

Rule of this folder: see script.py.mako. New columns may be empty, so servers of the step before keep writing their
rows; adding them rewrites nothing. The indexes lock their tables against writes while they are built: about a second
for a million rows.

Revision: 0002
Follows: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
INDEXES = (
    ("blob", "state"),
    ("version", "recorded_at"),
    ("verdict", "report"),
    ("job", "report"),
)


def upgrade() -> None:
    op.add_column("blob", sa.Column("marked_at", TIME, nullable=True))
    op.add_column("version", sa.Column("recorded_at", TIME, nullable=True))
    op.add_column("base", sa.Column("recorded_at", TIME, nullable=True))
    op.add_column("job", sa.Column("report", sa.String(), nullable=True))
    for table, column in INDEXES:
        op.create_index(f"ix_{table}_{column}", table, [column])


def downgrade() -> None:
    """Without the blobs in states that the step before does not know: no `pending` ones; it serves `corrupt`."""
    for table, column in INDEXES:
        op.drop_index(f"ix_{table}_{column}", table_name=table)
    op.execute("DELETE FROM blob WHERE state IN ('pending', 'dead', 'deleting')")
    op.execute("UPDATE blob SET state = 'live' WHERE state = 'corrupt'")
    op.drop_column("job", "report")
    op.drop_column("base", "recorded_at")
    op.drop_column("version", "recorded_at")
    op.drop_column("blob", "marked_at")
