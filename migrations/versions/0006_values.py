"""What the numbers of a version's weights say, and its tags

Rule of this folder: see script.py.mako. Two new tables and a column that may be empty: a server of the step before
leaves it empty, and the versions that it makes are measured by the first server of this step. Until
they are pushed anew the search by target and scheme does not find them.

Revision: 0006
Follows: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("version", sa.Column("measured_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_version_measured_at", "version", ["measured_at"])
    op.create_table(
        "version_values",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("norms", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_version_values_version_id"),
        sa.PrimaryKeyConstraint("version_id", name="pk_version_values"),
    )
    op.create_table(
        "version_tag",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_version_tag_version_id"),
        sa.PrimaryKeyConstraint("version_id", "key", name="pk_version_tag"),
    )
    op.create_index("ix_version_tag_key_value", "version_tag", ["key", "value", "version_id"])
    sqlite = op.get_bind().dialect.name == "sqlite"
    each, name = "json_each(v.facts, '$.targets') AS t", "t.value"
    if not sqlite:
        each, name = "json_array_elements_text(COALESCE(v.facts->'targets', '[]'::json)) AS t(name)", "t.name"
    op.execute(
        "INSERT INTO version_tag (version_id, key, value)"
        f" SELECT DISTINCT v.id, 'fact:target:' || {name}, '' FROM version v, {each}"
    )
    op.execute("INSERT INTO version_tag (version_id, key, value) SELECT id, 'fact:scheme:peft', '' FROM version")


def downgrade() -> None:
    op.drop_table("version_tag")
    op.drop_table("version_values")
    op.drop_index("ix_version_measured_at", "version")
    op.drop_column("version", "measured_at")
