"""Namespaces with roles and limits, names that are taken for ever, trusted publishers, tokens of subjects

Rule of this folder: see script.py.mako. New tables, and columns of `token` with defaults that mean what a token meant
before, so servers of the step before keep making tokens; a small table is locked for a moment. Such a server does not
know of subjects: make tokens with one once all servers are replaced.

Revision: 0004
Follows: 0003
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
BATCH = 1000


def upgrade() -> None:
    op.add_column("token", sa.Column("subject", sa.String(), nullable=False, server_default=""))
    op.add_column("token", sa.Column("adapters", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("token", sa.Column("previous_sha256", sa.String(), nullable=True))
    op.add_column("token", sa.Column("previous_until", TIME, nullable=True))
    op.create_index("ix_token_previous_sha256", "token", ["previous_sha256"])
    op.create_table(
        "namespace",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("quota_bytes", sa.BigInteger(), nullable=True),
        sa.Column("quota_versions", sa.Integer(), nullable=True),
        sa.Column("pushes_per_hour", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_namespace"),
    )
    op.create_table(
        "namespace_role",
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("granted_at", TIME, nullable=False),
        sa.Column("granted_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "subject", name="pk_namespace_role"),
    )
    op.create_index("ix_namespace_role_subject", "namespace_role", ["subject"])
    op.create_table(
        "publisher",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("claims", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_publisher"),
    )
    op.create_index("ix_publisher_namespace", "publisher", ["namespace"])
    op.create_index("ix_publisher_issuer", "publisher", ["issuer"])
    op.create_table(
        "used_assertion",
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("jti", sa.String(), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("issuer", "jti", name="pk_used_assertion"),
    )
    op.create_index("ix_used_assertion_expires_at", "used_assertion", ["expires_at"])
    op.create_table(
        "access_state",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_access_state"),
    )
    taken = op.create_table(
        "taken_name",
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("skeleton", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("ended_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("owner", "skeleton", name="pk_taken_name"),
    )
    op.execute(
        "INSERT INTO namespace (name, created_at, created_by)"
        " SELECT namespace, MIN(created_at), 'migration' FROM adapter GROUP BY namespace"
    )
    _take(taken, op.get_bind().execute(sa.text("SELECT namespace, name FROM adapter")).all())


def _take(taken: sa.Table, adapters: Any) -> None:
    """What is there keeps its name. Of two that look alike already, the first one stands for both."""
    names: dict[tuple[str, str], str] = {}
    for namespace, name in sorted((row[0], row[1]) for row in adapters):
        names.setdefault(("", _skeleton(namespace)), namespace)
        names.setdefault((namespace, _skeleton(name)), name)
    rows = [{"owner": owner, "skeleton": skeleton, "name": name} for (owner, skeleton), name in names.items()]
    for start in range(0, len(rows), BATCH):
        op.bulk_insert(taken, rows[start : start + BATCH])


def _skeleton(word: str) -> str:
    """`registry.names.skeleton` as it was then."""
    found, last, apart = "", "", False
    for letter in word:
        if letter in "._-":
            apart = True
            continue
        between_digits = apart and last.isdigit() and letter.isdigit()
        found += ("-" if between_digits else "") + {"l": "1", "i": "1", "o": "0"}.get(letter, letter)
        last, apart = letter, False
    return found


def downgrade() -> None:
    """Without the tokens that would mean more to the step before, and without tombstones."""
    op.execute("DELETE FROM token WHERE subject <> '' OR CAST(adapters AS TEXT) <> '[]'")
    for table in ("taken_name", "access_state", "used_assertion", "publisher", "namespace_role", "namespace"):
        op.drop_table(table)
    op.drop_index("ix_token_previous_sha256", table_name="token")
    for column in ("previous_until", "previous_sha256", "adapters", "subject"):
        op.drop_column("token", column)
