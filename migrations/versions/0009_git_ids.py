"""The git id of a blob, by which clients of the Hub's dialect know a small file.

Adds: blob.git_sha1 (empty until somebody asks for it)
Follows: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("blob", sa.Column("git_sha1", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("blob", "git_sha1")
