"""Xet sessions that a client continues

Rule of this folder: see script.py.mako. A new table; a server of the step before this one never reads it, and ends a
session with its first shard.

Revision: 0035
Follows: 0034
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "xet_session",
        sa.Column("push_id", sa.String(), nullable=False),
        sa.Column("word", sa.String(), nullable=False),
        sa.Column("has_shard", sa.Boolean(), nullable=False),
        sa.Column("is_shared", sa.Boolean(), nullable=False),
        sa.Column("is_closed", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["push_id"], ["push.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("push_id"),
    )


def downgrade() -> None:
    op.drop_table("xet_session")
