"""Thresholds of bases, campaigns of revalidation, steps of jobs

Rule of this folder: see script.py.mako. Four new tables: a server of the step before never looks at them, and nothing
that exists is changed.

Revision: 0007
Follows: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "base_thresholds",
        sa.Column("base_id", sa.Integer(), nullable=False),
        sa.Column("thresholds", sa.JSON(), nullable=False),
        sa.Column("set_at", TIME, nullable=False),
        sa.Column("set_by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["base_id"], ["base.id"], name="fk_base_thresholds_base_id"),
        sa.PrimaryKeyConstraint("base_id", name="pk_base_thresholds"),
    )
    op.create_table(
        "campaign",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("base", sa.String(), nullable=False),
        sa.Column("base_fingerprint", sa.String(), nullable=False),
        sa.Column("why", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_campaign"),
    )
    op.create_index("ix_campaign_base", "campaign", ["base"])
    op.create_table(
        "campaign_job",
        sa.Column("campaign_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("before", sa.String(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name="fk_campaign_job_campaign_id"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_campaign_job_job_id"),
        sa.PrimaryKeyConstraint("campaign_id", "job_id", name="pk_campaign_job"),
    )
    op.create_table(
        "job_step",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("says", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_job_step_job_id"),
        sa.PrimaryKeyConstraint("id", name="pk_job_step"),
    )
    op.create_index("ix_job_step_job_id", "job_step", ["job_id"])


def downgrade() -> None:
    op.drop_table("job_step")
    op.drop_table("campaign_job")
    op.drop_table("campaign")
    op.drop_table("base_thresholds")
