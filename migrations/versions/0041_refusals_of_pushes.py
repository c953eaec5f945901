"""Ended pushes keep why their files were refused, for clients that ask again

Rule of this folder: see script.py.mako. A column that may be null: no table is rewritten, requests wait for a moment.
A server of the step before this one says that a refused push does not exist.

Revision: 0041
Follows: 0040
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0041"
down_revision = "0040"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("push", sa.Column("refusal", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("push", "refusal")
