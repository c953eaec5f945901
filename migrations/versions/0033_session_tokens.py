"""Sessions of browsers know whether their token ends with them

Rule of this folder: see script.py.mako. A column with a default. The token of a session that a server of the step
before this one begins outlasts a sign-out at a newer server; it expires by itself.

Revision: 0033
Follows: 0032
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("page_session", sa.Column("owns_token", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute("UPDATE page_session SET owns_token = provider <> ''")


def downgrade() -> None:
    op.drop_column("page_session", "owns_token")
