"""Blobs of a push that are under their final key before the commit

Rule of this folder: see script.py.mako. One column, false in existing rows: their bytes are staged. Servers of the step
before this one look for the bytes of an open push under its staging keys, and request them again.

Revision: 0023
Follows: 0022
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("push_blob", sa.Column("is_stored", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    op.drop_column("push_blob", "is_stored")
