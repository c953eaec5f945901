"""Standard words: codes and fields of findings, messages of jobs, and four columns

Rule of this folder: see script.py.mako. Moves values in place, so stop every server of the step before this one. One
statement for each column, over the rows that hold an old word; results of jobs are changed row by row, because
`message` is also a field within them. Renaming a column rewrites no row. Events, signed statements and what a
broken-glass move was missing stay as they were written: the audit log's tree has hashed them.

Revision: 0020
Follows: 0019
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

CODES = {
    "blob.stray": "blob.orphan",
    "compat.method_unjudged": "compat.method_not_judged",
    "compat.module_unannounced": "compat.module_not_targeted",
    "compat.unties": "compat.embeddings_untied",
    "format.gguf_no_adapter": "format.gguf_not_adapter",
    "gguf.magic_wrong": "gguf.magic_invalid",
    "lora.magnitude_unannounced": "lora.magnitude_without_dora",
    "lora.prefix_wrong": "lora.prefix_invalid",
    "recipe.does_not_fit": "recipe.incompatible",
    "recipe.source_twice": "recipe.source_duplicate",
    "smoke.does_not_fit": "smoke.incompatible",
    "smoke.golden_endless": "smoke.golden_not_ended",
    "smoke.golden_unasked": "smoke.golden_skipped",
}
ENDS = {".rank_unannounced": ".rank_differs_from_config"}
"""How codes end: of `lora`, and of every engine."""
COLUMNS = (
    ("version_input", "place", "position"),
    ("fleet_node", "said", "report_digest"),
    ("fleet_node", "heard_at", "reported_at"),
    ("job_step", "says", "message"),
    ("campaign", "why", "request"),
)
PAGE = 500


def upgrade() -> None:
    _change_codes(CODES, ENDS, '"found": ', '"actual": ')
    _rename_in_results("says", "message")
    for table, old, new in COLUMNS:
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")


def downgrade() -> None:
    for table, old, new in reversed(COLUMNS):
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {new} TO {old}")
    _rename_in_results("message", "says")
    _change_codes(
        {new: old for old, new in CODES.items()}, {new: old for old, new in ENDS.items()}, '"actual": ', '"found": '
    )


def _change_codes(codes: dict[str, str], ends: dict[str, str], old_key: str, new_key: str) -> None:
    """A quote within a JSON string is escaped, so a quoted code or key is never part of one."""
    pairs = [(f'"{old}"', f'"{new}"') for old, new in codes.items()]
    pairs += [(f'{old}"', f'{new}"') for old, new in ends.items()]
    _replace("version", "facts", pairs)
    _replace("verdict", "findings", [*pairs, (old_key, new_key)])


def _replace(table: str, column: str, pairs: list[tuple[str, str]]) -> None:
    stored: sa.ColumnClause[object] = sa.column(column, sa.JSON())
    text: sa.ColumnElement[str] = sa.cast(stored, sa.Text())
    condition = sa.or_(*(text.contains(old, autoescape=True) for old, _ in pairs))
    for old, new in pairs:
        text = sa.func.replace(text, old, new, type_=sa.Text())
    changed = sa.cast(text, sa.JSON()) if op.get_bind().dialect.name == "postgresql" else text
    op.execute(sa.table(table, stored).update().where(condition).values({column: changed}))


def _rename_in_results(old: str, new: str) -> None:
    """Rename one key of the results of jobs, but not the same key within their values."""
    job = sa.table("job", sa.column("id", sa.String()), sa.column("result", sa.JSON()))
    has_key = sa.cast(job.c.result, sa.Text()).contains(f'"{old}": ', autoescape=True)
    after = ""
    while page := op.get_bind().execute(
        sa.select(job.c.id, job.c.result).where(has_key, job.c.id > after).order_by(job.c.id).limit(PAGE)
    ).all():  # fmt: skip
        for job_id, result in page:
            if old in result:
                changed = {new if key == old else key: value for key, value in result.items()}
                op.execute(job.update().where(job.c.id == job_id).values(result=changed))
        after = page[-1].id
