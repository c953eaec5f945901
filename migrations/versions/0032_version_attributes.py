"""`version_tag` becomes `version_attribute`: it holds annotations and facts, and tags are metadata

Rule of this folder: see script.py.mako. On PostgreSQL the table is renamed, which takes no time, and a view keeps its
former name for servers of the step before this one: they read, insert and delete through it. A later step drops the
view. SQLite serves one process, and cannot rename constraints, so the rows are copied there.

Revision: 0032
Follows: 0031
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _rename("version_tag", "version_attribute")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("CREATE VIEW version_tag AS SELECT version_id, key, value FROM version_attribute")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP VIEW version_tag")
    _rename("version_attribute", "version_tag")


def _rename(old: str, new: str) -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.rename_table(old, new)
        for constraint in ("pk_{}", "fk_{}_version_id"):
            op.execute(f"ALTER TABLE {new} RENAME CONSTRAINT {constraint.format(old)} TO {constraint.format(new)}")
        op.execute(f"ALTER INDEX ix_{old}_key_value RENAME TO ix_{new}_key_value")
        return
    op.create_table(
        new,
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name=f"fk_{new}_version_id"),
        sa.PrimaryKeyConstraint("version_id", "key", name=f"pk_{new}"),
    )
    op.execute(f"INSERT INTO {new} SELECT version_id, key, value FROM {old}")
    op.drop_table(old)
    op.create_index(f"ix_{new}_key_value", new, ["key", "value", "version_id"])
