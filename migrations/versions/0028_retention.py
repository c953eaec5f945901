"""Retention rules, expiries and automatic jobs

Rule of this folder: see script.py.mako. Two new tables, an index on the few expiries, and a column with a default. A
server of the step before this one deletes nothing by rule and supersedes no job.

Revision: 0028
Follows: 0027
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

IS_EXPIRY = sa.text("kind = 'expires'")


def upgrade() -> None:
    for table, key in (("namespace_retention", sa.String()), ("adapter_retention", sa.Integer())):
        owner = table.removesuffix("_retention")
        column = "namespace" if owner == "namespace" else "adapter_id"
        references = [sa.ForeignKeyConstraint([column], ["adapter.id"])] if owner == "adapter" else []
        op.create_table(
            table,
            sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
            sa.Column("set_by", sa.String(), nullable=False),
            sa.Column(column, key, nullable=False),
            sa.Column("rule", sa.JSON(), nullable=False),
            *references,
            sa.PrimaryKeyConstraint(column),
        )
    op.create_index(
        "ix_version_metadata_expiry", "version_metadata", ["value"], postgresql_where=IS_EXPIRY, sqlite_where=IS_EXPIRY
    )
    op.add_column("job", sa.Column("automatic", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    op.execute("UPDATE job SET state = 'cancelled' WHERE state = 'superseded'")  # a state that is new with this step
    op.drop_column("job", "automatic")
    op.drop_index("ix_version_metadata_expiry", table_name="version_metadata")
    op.execute("DELETE FROM version_metadata WHERE kind = 'expires'")
    op.drop_table("adapter_retention")
    op.drop_table("namespace_retention")
