"""Sessions of browsers that signed in at an identity provider

Rule of this folder: see script.py.mako. Two columns with defaults. A server of the step before this one ignores them.

Revision: 0031
Follows: 0030
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("page_session", sa.Column("provider", sa.String(), nullable=False, server_default=""))
    op.add_column("page_session", sa.Column("confirmed_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("page_session", "confirmed_at")
    op.drop_column("page_session", "provider")
