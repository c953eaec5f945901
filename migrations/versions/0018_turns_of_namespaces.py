"""When a namespace had its last job

Rule of this folder: see script.py.mako. A new index. Building it locks `job` against writes for some seconds.

Adds: an index on the namespace and the start of jobs
Revision: 0018
Follows: 0017
"""

from __future__ import annotations

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_job_namespace_started_at", "job", ["namespace", "started_at"])


def downgrade() -> None:
    op.drop_index("ix_job_namespace_started_at", table_name="job")
