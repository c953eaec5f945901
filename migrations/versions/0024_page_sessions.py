"""Sessions of the web pages

Rule of this folder: see script.py.mako. A new table, which servers of the step before this one do not read.

Revision: 0024
Follows: 0023
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "page_session",
        sa.Column("id_sha256", sa.String(), nullable=False),
        sa.Column("secret_sha256", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id_sha256", name="pk_page_session"),
    )
    op.create_index("ix_page_session_expires_at", "page_session", ["expires_at"])


def downgrade() -> None:
    op.drop_table("page_session")
