"""Pushers, approvals and campaigns say which of them are tokens and which are people

Rule of this folder: see script.py.mako. Values only (ADR 41): what a token without a subject is recorded as begins with
`token:` from now on. Events and moves of aliases keep what the log's hashes cover. Where a token and a person have one
name, neither approves a version that one of them pushed. A server of the step before this one records names alone. A
million versions take a minute or two; changes of these versions wait, and pushes do at its end.

Revision: 0038
Follows: 0037
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0038"
down_revision = "0037"
branch_labels = None
depends_on = None

_TOKENS = "SELECT name FROM token WHERE subject = '' AND created_by <> 'exchange'"
_SUBJECTS = "SELECT subject FROM token UNION SELECT subject FROM namespace_role"


def upgrade() -> None:
    op.execute(
        "UPDATE version SET pushed_by = 'token:' || created_by "
        f"WHERE coalesce(pushed_by, created_by) = created_by AND created_by IN ({_TOKENS})"
    )
    op.execute(
        "UPDATE campaign SET created_by = 'token:' || created_by "
        f"WHERE created_by IN ({_TOKENS}) AND created_by NOT IN ({_SUBJECTS})"
    )
    _rename_approvals(
        "SELECT approval.id, 'token:' || approval.identity FROM approval JOIN token ON token.id = approval.token_id "
        "WHERE token.subject = '' ORDER BY length(approval.identity) DESC"
    )


def downgrade() -> None:
    op.execute("UPDATE version SET pushed_by = substr(pushed_by, 7) WHERE pushed_by LIKE 'token:%'")
    op.execute("UPDATE campaign SET created_by = substr(created_by, 7) WHERE created_by LIKE 'token:%'")
    op.execute(
        "DELETE FROM approval WHERE identity LIKE 'token:%' AND EXISTS (SELECT 1 FROM approval AS other WHERE "
        "other.version_id = approval.version_id AND other.alias = approval.alias AND other.identity NOT LIKE 'token:%' "
        "AND other.identity = substr(approval.identity, 7))"
    )
    _rename_approvals(
        "SELECT id, substr(identity, 7) FROM approval WHERE identity LIKE 'token:%' ORDER BY length(identity)"
    )


def _rename_approvals(select: str) -> None:
    """One at a time, in this order: a token may have the name that another one is recorded as."""
    connection, rename = op.get_bind(), sa.text("UPDATE approval SET identity = :identity WHERE id = :id")
    for row_id, identity in connection.execute(sa.text(select)).all():
        connection.execute(rename, {"id": row_id, "identity": identity})
