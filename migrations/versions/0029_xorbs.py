"""Xorbs of Xet uploads

Rule of this folder: see script.py.mako. A new table; a server of the step before this one never reads it, and ends the
pushes that hold its xorbs as any other.

Revision: 0029
Follows: 0028
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "xorb",
        sa.Column("push_id", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("chunk_ends", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["push_id"], ["push.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("push_id", "hash"),
    )


def downgrade() -> None:
    op.drop_table("xorb")
