"""The git id of a small file is kept with its version, no longer with its blob, which tenants share

Rule of this folder: see script.py.mako.
Adds: version_file.git_sha1 (empty until somebody asks for it); blob.git_sha1 stays for servers of the step before

Revision: 0014
Follows: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("version_file", sa.Column("git_sha1", sa.String(), nullable=True))


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        # Readers take version before version_file. The steps below this one change version in the same transaction:
        # whoever took version_file first and then waited for version would be in a deadlock with them.
        op.execute("LOCK TABLE version IN ACCESS EXCLUSIVE MODE")
    op.drop_column("version_file", "git_sha1")
