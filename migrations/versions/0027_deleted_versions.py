"""Deletion of versions

Rule of this folder: see script.py.mako. Four columns with defaults and an index on one that is empty in all rows, so
building it takes one scan of `version`. A server of the step before this one still shows a version that was deleted.

Revision: 0027
Follows: 0026
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("version", sa.Column("deleted_at", TIME, nullable=True))
    op.add_column("version", sa.Column("deleted_by", sa.String(), nullable=False, server_default=""))
    op.add_column("version", sa.Column("delete_reason", sa.Text(), nullable=False, server_default=""))
    op.add_column("version", sa.Column("purged_at", TIME, nullable=True))
    op.create_index("ix_version_deleted_at", "version", ["deleted_at"])


def downgrade() -> None:
    op.drop_index("ix_version_deleted_at", table_name="version")
    for column in ("purged_at", "delete_reason", "deleted_by", "deleted_at"):
        op.drop_column("version", column)
