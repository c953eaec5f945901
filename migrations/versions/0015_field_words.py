"""The field's words in stored values: the names of checks, the codes and fields of findings

Rule of this folder: see script.py.mako. Moves values in place, so stop every server of the step before this one. One
statement for each column, over the rows that hold an old word. Events and signed statements stay as they were written:
the audit log's tree has hashed them. What a broken-glass move was missing stays as well, because the log repeats it.
Facts of versions stay: a server reads facts of an older version of them again.

Revision: 0015
Follows: 0014
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

CHECKS = {"fits": "compat", "values": "weights", "loads": "engine", "acts": "smoke"}
FAMILIES = {"weights": "safetensors", "values": "weights", "fit": "compat", "acts": "smoke"}
"""How codes of findings begin. The order matters: `weights` has to be free before `values` becomes it."""
FIELDS = {"place": "location", "sentence": "message"}
"""Fields of findings, and of what a conversion reported."""


def upgrade() -> None:
    _change_words(CHECKS, FAMILIES, FIELDS)


def downgrade() -> None:
    _change_words(_inverse(CHECKS), _inverse(FAMILIES), _inverse(FIELDS))


def _inverse(words: dict[str, str]) -> dict[str, str]:
    return {new: old for old, new in reversed(words.items())}


def _change_words(checks: dict[str, str], families: dict[str, str], fields: dict[str, str]) -> None:
    verdict = sa.table("verdict", sa.column("check", sa.String()))
    op.execute(verdict.update().where(verdict.c.check.in_(checks)).values(check=sa.case(checks, value=verdict.c.check)))
    codes = [(f'"code": "{old}.', f'"code": "{new}.') for old, new in families.items()]
    keys = [(f'"{old}": ', f'"{new}": ') for old, new in fields.items()]
    _replace("verdict", "findings", [*codes, *keys])
    conversions = sa.column("kind", sa.String()).in_(("convert", "convert-on-base"))
    _replace("job", "result", keys, conversions)
    _replace("alias_move", "evidence", [(f'"check": "{old}"', f'"check": "{new}"') for old, new in checks.items()])
    for table, key in (("namespace_gate", "namespace"), ("adapter_gate", "adapter_id")):
        _change_gates(table, key, checks)


def _replace(
    table: str, column: str, pairs: list[tuple[str, str]], where: sa.ColumnElement[bool] | None = None
) -> None:
    """Replace texts in a JSON column. A quote within a JSON string is escaped, so `"key": "` is never part of one."""
    json_column = sa.column(column, sa.JSON())
    text = sa.cast(json_column, sa.Text())
    condition = sa.or_(*(text.contains(old, autoescape=True) for old, _ in pairs))
    condition = condition if where is None else sa.and_(where, condition)
    for old, new in pairs:
        text = sa.func.replace(text, old, new, type_=sa.Text())
    is_postgres = op.get_bind().dialect.name == "postgresql"
    rows = sa.table(table, json_column)
    op.execute(rows.update().where(condition).values({column: sa.cast(text, sa.JSON()) if is_postgres else text}))


def _change_gates(table: str, key: str, checks: dict[str, str]) -> None:
    rows = sa.table(table, sa.column(key), sa.column("alias"), sa.column("gate", sa.JSON()))
    for owner, alias, gate in op.get_bind().execute(sa.select(*rows.c)).all():
        changed = {**gate, "requires": [checks.get(check, check) for check in gate.get("requires", [])]}
        op.execute(rows.update().where(rows.c[key] == owner, rows.c.alias == alias).values(gate=changed))
