"""Who reported a verdict, and whether that was the version's own namespace

Rule of this folder: see script.py.mako. New columns with a default, so the release before this one can go on writing.

Adds: verdict.judged_by, verdict.by_owner
Revision: 0017
Follows: 0016
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("verdict", sa.Column("judged_by", sa.String(), nullable=False, server_default=""))
    op.add_column("verdict", sa.Column("by_owner", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    op.drop_column("verdict", "by_owner")
    op.drop_column("verdict", "judged_by")
