"""The fleet: boxes that report what they serve, their slots, and the blobs that those need

Rule of this folder: see script.py.mako. Three new tables; a server of the step before does not know them.

Revision: 0011
Follows: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "fleet_box",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("reporter", sa.String(), nullable=False),
        sa.Column("reporter_name", sa.String(), nullable=False),
        sa.Column("box", sa.String(), nullable=False),
        sa.Column("engine", sa.String(), nullable=False),
        sa.Column("base", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("on_demand", sa.Boolean(), nullable=False),
        sa.Column("reach", sa.JSON(), nullable=True),
        sa.Column("said", sa.String(), nullable=False),
        sa.Column("heard_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_fleet_box"),
        sa.UniqueConstraint("reporter", "box", "engine", name="uq_fleet_box_reporter_box_engine"),
    )
    op.create_index("ix_fleet_box_expires_at", "fleet_box", ["expires_at"])
    op.create_table(
        "fleet_slot",
        sa.Column("box_id", sa.Integer(), nullable=False),
        sa.Column("served_name", sa.String(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("proved", sa.Boolean(), nullable=False),
        sa.Column("since", TIME, nullable=False),
        sa.ForeignKeyConstraint(["box_id"], ["fleet_box.id"], name="fk_fleet_slot_box_id"),
        sa.PrimaryKeyConstraint("box_id", "served_name", name="pk_fleet_slot"),
    )
    op.create_index("ix_fleet_slot_namespace", "fleet_slot", ["namespace"])
    op.create_index("ix_fleet_slot_digest", "fleet_slot", ["digest"])
    op.create_table(
        "fleet_blob",
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("version", "digest", name="pk_fleet_blob"),
    )
    op.create_index("ix_fleet_blob_digest", "fleet_blob", ["digest"])


def downgrade() -> None:
    op.drop_table("fleet_blob")
    op.drop_table("fleet_slot")
    op.drop_table("fleet_box")
