"""What a fused base was made from: edges to the adapters that are in its weights.

Adds: base.parents (JSON, empty for every base that nobody fused)
Follows: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("base", sa.Column("parents", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("base", "parents")
