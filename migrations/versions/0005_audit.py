"""The audit log as a tree: positions, tiles, checkpoints; attestations; webhooks and their deliveries

Rule of this folder: see script.py.mako. New tables, and columns of `event` with defaults, so servers of the step before
keep appending: what they append is numbered by the first server of this step.

Revision: 0005
Follows: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("event", sa.Column("namespace", sa.String(), nullable=False, server_default=""))
    op.add_column("event", sa.Column("position", sa.BigInteger(), nullable=True))
    first = "split_part(object, '/', 1)"
    if op.get_bind().dialect.name == "sqlite":
        first = "substr(object, 1, instr(object, '/') - 1)"
    op.execute(
        f"UPDATE event SET namespace = {first} WHERE object LIKE '%/%' AND (action LIKE 'version.%'"
        " OR action LIKE 'alias.%' OR action LIKE 'adapter.%' OR action LIKE 'verdict.%')"
    )
    op.create_index("uq_event_position", "event", ["position"], unique=True)
    op.create_index("ix_event_namespace_position", "event", ["namespace", "position"])
    op.create_table(
        "audit_tile",
        sa.Column("level", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("hashes", sa.LargeBinary(), nullable=False),
        sa.Column("stored_width", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("level", "index", name="pk_audit_tile"),
    )
    op.create_index("ix_audit_tile_stored_width", "audit_tile", ["stored_width"])
    op.create_table(
        "audit_checkpoint",
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("size", name="pk_audit_checkpoint"),
    )
    op.create_table(
        "attestation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("identity", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.Column("made_at", TIME, nullable=False),
        sa.Column("made_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_attestation"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_attestation_version_id"),
        sa.UniqueConstraint("position", name="uq_attestation_position"),
    )
    for column in ("version_id", "identity", "digest"):
        op.create_index(f"ix_attestation_{column}", "attestation", [column])
    op.create_table(
        "webhook",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("actions", sa.JSON(), nullable=False),
        sa.Column("after", sa.BigInteger(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_webhook"),
    )
    op.create_index("ix_webhook_namespace", "webhook", ["namespace"])
    op.create_table(
        "webhook_delivery",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("webhook_id", sa.String(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("next_at", TIME, nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("ended_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_delivery"),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhook.id"], name="fk_webhook_delivery_webhook_id", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("webhook_id", "position", name="uq_webhook_delivery_webhook_id_position"),
    )
    op.create_index("ix_webhook_delivery_due", "webhook_delivery", ["state", "next_at"])


def downgrade() -> None:
    for table in ("webhook_delivery", "webhook", "attestation", "audit_checkpoint", "audit_tile"):
        op.drop_table(table)
    op.drop_index("ix_event_namespace_position", table_name="event")
    op.drop_index("uq_event_position", table_name="event")
    for column in ("position", "namespace"):
        op.drop_column("event", column)
