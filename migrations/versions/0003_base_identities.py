"""Which weights a base has, and how bases are related

Rule of this folder: see script.py.mako. Two new tables: a server of the step before never looks at them, and nothing
that exists is locked.

Revision: 0003
Follows: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "base_identity",
        sa.Column("base_id", sa.Integer(), nullable=False),
        sa.Column("exact", sa.String(), nullable=False),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("made_by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["base_id"], ["base.id"], name="fk_base_identity_base_id"),
        sa.PrimaryKeyConstraint("base_id", name="pk_base_identity"),
    )
    op.create_index("ix_base_identity_exact", "base_identity", ["exact"])
    op.create_table(
        "base_likeness",
        sa.Column("base_id", sa.Integer(), nullable=False),
        sa.Column("other_id", sa.Integer(), nullable=False),
        sa.Column("likeness", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["base_id"], ["base.id"], name="fk_base_likeness_base_id"),
        sa.ForeignKeyConstraint(["other_id"], ["base.id"], name="fk_base_likeness_other_id"),
        sa.PrimaryKeyConstraint("base_id", "other_id", name="pk_base_likeness"),
    )


def downgrade() -> None:
    op.drop_table("base_likeness")
    op.drop_table("base_identity")
