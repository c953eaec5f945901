"""The text index: the words by which adapters are found

Rule of this folder: see script.py.mako. New tables only: servers of the step before this one do not write them, and
garbage collection adds what they leave out. Until it runs, adapters of before are found by their names.

Revision: 0036
Follows: 0035
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None

_COLUMNS = "name_words, tag_words, card_words"
_VECTOR = "array_to_tsvector(array_remove(string_to_array(name_words || tag_words || card_words, ' '), ''))"
_INSERT = (
    "INSERT INTO adapter_text_index (rowid, name_words, tag_words, card_words) "
    "VALUES (new.adapter_id, new.name_words, new.tag_words, new.card_words)"
)
_DELETE = (
    "INSERT INTO adapter_text_index (adapter_text_index, rowid, name_words, tag_words, card_words) "
    "VALUES ('delete', old.adapter_id, old.name_words, old.tag_words, old.card_words)"
)
_SEPARATORS = ("/", "-", ".", "_")


def upgrade() -> None:
    op.create_table(
        "adapter_text",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=True),
        sa.Column("name_words", sa.Text(), nullable=False),
        sa.Column("tag_words", sa.Text(), nullable=False),
        sa.Column("card_words", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name="fk_adapter_text_adapter_id"),
        sa.PrimaryKeyConstraint("adapter_id", name="pk_adapter_text"),
    )
    op.create_index("ix_adapter_text_version_id", "adapter_text", ["version_id"])
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    if is_sqlite:
        _create_sqlite_index()
    name = "namespace || ' ' || name"
    for separator in _SEPARATORS:
        name = f"replace({name}, '{separator}', ' ')"
    op.execute(f"INSERT INTO adapter_text (adapter_id, {_COLUMNS}) SELECT id, ' ' || {name}, '', '' FROM adapter")
    if not is_sqlite:
        op.execute(f"CREATE INDEX ix_adapter_text_words ON adapter_text USING gin (({_VECTOR}))")


def _create_sqlite_index() -> None:
    """The index without a copy of the texts, and the triggers that keep it."""
    op.execute(
        f"CREATE VIRTUAL TABLE adapter_text_index USING fts5({_COLUMNS}, content='adapter_text', "
        "content_rowid='adapter_id', tokenize='ascii', detail='none', columnsize=0, prefix='2 3')"
    )
    for event, statements in (
        ("INSERT", (_INSERT,)),
        ("DELETE", (_DELETE,)),
        (f"UPDATE OF {_COLUMNS}", (_DELETE, _INSERT)),
    ):
        name = f"adapter_text_{event.partition(' ')[0].lower()}"
        op.execute(f"CREATE TRIGGER {name} AFTER {event} ON adapter_text BEGIN {'; '.join(statements)}; END")


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TABLE adapter_text_index")
    op.drop_table("adapter_text")
