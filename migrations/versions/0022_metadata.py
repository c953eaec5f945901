"""Descriptions, tags and links that can change

Rule of this folder: see script.py.mako. Two new tables, which servers of the step before this one do not read.

Revision: 0022
Follows: 0021
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for owner in ("adapter", "version"):
        table, key = f"{owner}_metadata", f"{owner}_id"
        op.create_table(
            table,
            sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
            sa.Column("set_by", sa.String(), nullable=False),
            sa.Column(key, sa.Integer(), nullable=False),
            sa.Column("kind", sa.String(), nullable=False),
            sa.Column("key", sa.String(), nullable=False),
            sa.Column("value", sa.Text(), nullable=False),
            sa.ForeignKeyConstraint([key], [f"{owner}.id"], name=f"fk_{table}_{key}"),
            sa.PrimaryKeyConstraint(key, "kind", "key", name=f"pk_{table}"),
        )
        is_tag = sa.text("kind = 'tag'")
        op.create_index(f"ix_{table}_tag", table, ["key", "value", key], postgresql_where=is_tag, sqlite_where=is_tag)


def downgrade() -> None:
    op.drop_table("version_metadata")
    op.drop_table("adapter_metadata")
