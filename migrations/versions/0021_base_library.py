"""Modules of a base as an installed library builds them

Rule of this folder: see script.py.mako. Two columns, empty in existing rows: a worker fills them. Servers of the step
before this one do not read them.

Revision: 0021
Follows: 0020
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("base", sa.Column("library", sa.String(), nullable=True))
    op.add_column("base", sa.Column("library_modules", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("base", "library_modules")
    op.drop_column("base", "library")
