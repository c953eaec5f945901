"""Tombstones are recorded beside the blobs

Rule of this folder: see script.py.mako.
Adds: taken_name.recorded_at (empty: the next run of `gc` records the tombstones that there are)

Revision: 0013
Follows: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("taken_name", sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("taken_name", "recorded_at")
