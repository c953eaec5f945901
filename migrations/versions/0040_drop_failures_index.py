"""Drops the index of failed verdicts, which that of all outcomes (0039) replaces

Rule of this folder: see script.py.mako. On PostgreSQL readers of verdicts wait for a moment. The step locks nothing
else: a step that had another lock and waited for this one could be waited for by a transaction that has read verdicts.
A server of the step before 0039 finds failed versions more slowly.

Revision: 0040
Follows: 0039
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0040"
down_revision = "0039"
branch_labels = None
depends_on = None

_FAILED = sa.text("outcome = 'fail'")


def upgrade() -> None:
    op.drop_index("ix_verdict_failure", table_name="verdict", if_exists=True)  # an early 0039 dropped it


def downgrade() -> None:
    op.create_index(
        "ix_verdict_failure", "verdict", ["check", "profile", "version_id"],
        postgresql_where=_FAILED, sqlite_where=_FAILED,
    )  # fmt: skip
