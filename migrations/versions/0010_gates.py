"""Gates of namespaces and adapters, approvals, who pushed a version, quarantine

Rule of this folder: see script.py.mako. Three new tables, and columns that a server of the step before leaves at their
defaults.

Revision: 0010
Follows: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("version", sa.Column("pushed_by", sa.String(), nullable=True))
    op.add_column("version", sa.Column("quarantine", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("version", sa.Column("quarantined_at", TIME, nullable=True))
    op.add_column("version", sa.Column("quarantine_reason", sa.Text(), nullable=False, server_default=""))
    op.create_table(
        "namespace_gate",
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("gate", sa.JSON(), nullable=False),
        sa.Column("set_at", TIME, nullable=False),
        sa.Column("set_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "alias", name="pk_namespace_gate"),
    )
    op.create_table(
        "adapter_gate",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("gate", sa.JSON(), nullable=False),
        sa.Column("set_at", TIME, nullable=False),
        sa.Column("set_by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name="fk_adapter_gate_adapter_id"),
        sa.PrimaryKeyConstraint("adapter_id", "alias", name="pk_adapter_gate"),
    )
    op.create_table(
        "approval",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("identity", sa.String(), nullable=False),
        sa.Column("token_id", sa.String(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_approval_version_id"),
        sa.PrimaryKeyConstraint("id", name="pk_approval"),
        sa.UniqueConstraint("version_id", "alias", "identity", name="uq_approval_version_id_alias_identity"),
    )


def downgrade() -> None:
    op.drop_table("approval")
    op.drop_table("adapter_gate")
    op.drop_table("namespace_gate")
    op.drop_column("version", "quarantine_reason")
    op.drop_column("version", "quarantined_at")
    op.drop_column("version", "quarantine")
    op.drop_column("version", "pushed_by")
