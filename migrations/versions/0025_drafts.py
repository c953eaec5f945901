"""Drafts of Hub clients, and strict namespaces

Rule of this folder: see script.py.mako. Two new tables, and a column with a default. Servers of the step before this
one do not read them, and end a draft with its push.

Revision: 0025
Follows: 0024
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("namespace", sa.Column("strict", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "draft",
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("branch", sa.String(), nullable=False),
        sa.Column("push_id", sa.String(), nullable=False),
        sa.Column("parent", sa.String(), nullable=False),
        sa.Column("revision", sa.String(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["push_id"], ["push.id"], name="fk_draft_push_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_draft"),
        sa.UniqueConstraint("namespace", "name", "owner", "branch", name="uq_draft_namespace_name_owner_branch"),
    )
    op.create_index("ix_draft_push_id", "draft", ["push_id"])
    op.create_table(
        "draft_file",
        sa.Column("draft_id", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("git_sha1", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["draft_id"], ["draft.id"], name="fk_draft_file_draft_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("draft_id", "path", name="pk_draft_file"),
    )


def downgrade() -> None:
    op.drop_table("draft_file")
    op.drop_table("draft")
    op.drop_column("namespace", "strict")
