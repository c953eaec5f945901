"""Locks between servers as rows, and indexes for what grows

Rule of this folder: see script.py.mako. A new table, and indexes. Building one locks its table against writes: some
seconds for a million rows of `event`, which pushes wait for.

Adds: process_lock; indexes on the foreign keys that a deletion looks up, on events without a number, and on the object
of an event for prefixes under any collation
Revision: 0016
Follows: 0015
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

INDEXES = (
    ("alias_move", "from_version_id"),
    ("alias_move", "to_version_id"),
    ("campaign_job", "job_id"),
    ("verdict", "base_id"),
)


def upgrade() -> None:
    op.create_table(
        "process_lock",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_process_lock"),
    )
    for table, column in INDEXES:
        op.create_index(f"ix_{table}_{column}", table, [column])
    unnumbered = sa.text("position IS NULL")
    op.create_index("ix_event_unnumbered", "event", ["seq"], postgresql_where=unnumbered, sqlite_where=unnumbered)
    _replace_event_object({"object": "text_pattern_ops"})


def downgrade() -> None:
    _replace_event_object({})
    op.drop_index("ix_event_unnumbered", table_name="event")
    for table, column in INDEXES:
        op.drop_index(f"ix_{table}_{column}", table_name=table)
    op.drop_table("process_lock")


def _replace_event_object(operators: dict[str, str]) -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index("ix_event_object", table_name="event")
        op.create_index("ix_event_object", "event", ["object"], postgresql_ops=operators)
