"""Groups of people who sign in

Rule of this folder: see script.py.mako. A column with a default. A server of the step before this one gives no roles
by groups.

Revision: 0030
Follows: 0029
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("token", sa.Column("groups", sa.JSON(), nullable=False, server_default="[]"))


def downgrade() -> None:
    op.drop_column("token", "groups")
