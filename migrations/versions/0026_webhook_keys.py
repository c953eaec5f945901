"""The key that a webhook's secret derives from

Rule of this folder: see script.py.mako. A column with a default: the webhooks that are there keep their secrets, which
derive from the oldest key. Servers of the step before this one sign with that key, so rotate no key during an upgrade.

Revision: 0026
Follows: 0025
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("webhook", sa.Column("key", sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("webhook", "key")
