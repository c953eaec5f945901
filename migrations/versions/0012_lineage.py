"""What versions were made from beside their parents, and the parents of bases as rows that can be walked

Rule of this folder: see script.py.mako. Two new tables; the second is filled from base.parents, which stays.

Revision: 0012
Follows: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "version_input",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("relation", sa.String(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("uri", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_version_input_version_id"),
        sa.PrimaryKeyConstraint("version_id", "place", name="pk_version_input"),
    )
    op.create_index("ix_version_input_uri", "version_input", ["uri"])
    op.create_index("ix_version_input_digest", "version_input", ["digest"])
    made = op.create_table(
        "base_edge",
        sa.Column("base_id", sa.Integer(), nullable=False),
        sa.Column("parent_digest", sa.String(), nullable=False),
        sa.Column("relation", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["base_id"], ["base.id"], name="fk_base_edge_base_id"),
        sa.PrimaryKeyConstraint("base_id", "parent_digest", "relation", name="pk_base_edge"),
    )
    op.create_index("ix_base_edge_parent_digest", "base_edge", ["parent_digest"])
    base = sa.table("base", sa.column("id", sa.Integer()), sa.column("parents", sa.JSON()))
    found = op.get_bind().execute(sa.select(base.c.id, base.c.parents)).all()
    edges = {(base_id, edge["digest"], edge["relation"]) for base_id, parents in found for edge in parents or ()}
    if edges:
        columns = ("base_id", "parent_digest", "relation")
        op.bulk_insert(made, [dict(zip(columns, edge, strict=True)) for edge in sorted(edges)])


def downgrade() -> None:
    op.drop_table("base_edge")
    op.drop_table("version_input")
