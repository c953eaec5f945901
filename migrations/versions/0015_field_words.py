"""The field's words: names of checks, codes and fields of findings, nodes of the fleet and states of their slots

Rule of this folder: see script.py.mako. Moves values in place, so stop every server of the step before this one. One
statement for each column, over the rows that hold an old word. Events and signed statements stay as they were written:
the audit log's tree has hashed them. What a broken-glass move was missing stays as well, because the log repeats it.
Facts of versions stay: a server reads old ones again. The tables of the fleet and of similar bases are small, so they
are copied into new ones; so is `version_values` on SQLite.

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

TIME = sa.DateTime(timezone=True)
CHECKS = {"fits": "compat", "values": "weights", "loads": "engine", "acts": "smoke", "held": "soak"}
FAMILIES = {"weights": "safetensors", "values": "weights", "fit": "compat", "acts": "smoke"}
"""How codes of findings begin. The order matters: `weights` has to be free before `values` becomes it."""
CODES = {
    "compat.base_quantised": "compat.base_quantized",
    "compat.base_quantised_variant": "compat.base_quantized_variant",
    "format.unknown_scheme": "format.unknown",
    "smoke.picture_not_finite": "smoke.image_not_finite",
    "smoke.picture_unchanged": "smoke.image_unchanged",
}
"""Codes within a family, after the family has its name of today."""
KEYS = {"scheme": "format", "quantisation": "quantization", "dequantise": "dequantize"}
"""Fields of facts, bases and recipes."""
MATCHES = [('"grade": ', '"match": '), ('"quantised"', '"quantized"')]
JOB_KINDS, JOB_STATES = {"validate": "smoke-test"}, {"parked": "failed"}
ACTIONS = {
    "adapter.arrive": "adapter.rename_from",
    "adapter.transfer": "adapter.rename",
    "blob.mend": "blob.repair",
    "campaign.begin": "campaign.start",
    "job.park": "job.fail",
    "upkeep.collect": "gc.run",
    "upkeep.rejudge": "engines.recheck",
    "version.leave": "version.unserve",
    "version.release": "version.unquarantine",
}
STATES = {"held": "downloaded", "leaving": "draining"}
GATE_FIELDS = {"held_in": "soak_in", "held_seconds": "soak_seconds"}
FIELDS = {"place": "location", "sentence": "message"}
"""Fields of findings, and of what a conversion reported."""


def upgrade() -> None:
    _change_words(CHECKS, FAMILIES, FIELDS, GATE_FIELDS)
    _change_jobs(JOB_KINDS, JOB_STATES, ACTIONS)
    _copy_fleet(("fleet_box", "box", "proved"), ("fleet_node", "node", "verified"), STATES)
    _copy_similarity("likeness", "similarity")
    _replace("base_similarity", "similarity", MATCHES)
    _rename_norms("version_values", "version_norms")
    _change_spelling(CODES, KEYS, "fact:scheme:", "fact:format:")


def downgrade() -> None:
    _change_spelling(_inverse(CODES), _inverse(KEYS), "fact:format:", "fact:scheme:")
    _rename_norms("version_norms", "version_values")
    _replace("base_similarity", "similarity", [(new, old) for old, new in MATCHES])
    _copy_similarity("similarity", "likeness")
    _copy_fleet(("fleet_node", "node", "verified"), ("fleet_box", "box", "proved"), _inverse(STATES))
    _change_jobs(_inverse(JOB_KINDS), _inverse(JOB_STATES), _inverse(ACTIONS))
    _change_words(_inverse(CHECKS), _inverse(FAMILIES), _inverse(FIELDS), _inverse(GATE_FIELDS))


def _inverse(words: dict[str, str]) -> dict[str, str]:
    return {new: old for old, new in reversed(words.items())}


def _change_words(
    checks: dict[str, str], families: dict[str, str], fields: dict[str, str], gate_fields: dict[str, str]
) -> None:
    _change_values("verdict", "check", checks)
    codes = [(f'"code": "{old}.', f'"code": "{new}.') for old, new in families.items()]
    keys = [(f'"{old}": ', f'"{new}": ') for old, new in fields.items()]
    _replace("verdict", "findings", [*codes, *keys])
    conversions = sa.column("kind", sa.String()).in_(("convert", "convert-on-base"))
    _replace("job", "result", keys, conversions)
    _replace("alias_move", "evidence", [(f'"check": "{old}"', f'"check": "{new}"') for old, new in checks.items()])
    for table, key in (("namespace_gate", "namespace"), ("adapter_gate", "adapter_id")):
        _change_gates(table, key, checks, gate_fields)


def _change_jobs(kinds: dict[str, str], states: dict[str, str], actions: dict[str, str]) -> None:
    _change_values("job", "kind", kinds)
    _change_values("job", "state", states)
    _replace("webhook", "actions", [(f'"{old}"', f'"{new}"') for old, new in actions.items()])


def _change_values(table: str, column: str, words: dict[str, str]) -> None:
    rows = sa.table(table, sa.column(column, sa.String()))
    op.execute(rows.update().where(rows.c[column].in_(words)).values({column: sa.case(words, value=rows.c[column])}))


def _replace(
    table: str, column: str, pairs: list[tuple[str, str]], where: sa.ColumnElement[bool] | None = None,
    *, is_json: bool = True,
) -> None:  # fmt: skip
    """Replace texts in a JSON column. A quote within a JSON string is escaped, so `"key": "` is never part of one."""
    stored: sa.ColumnClause[object] = sa.column(column, sa.JSON() if is_json else sa.Text())
    text: sa.ColumnElement[str] = sa.cast(stored, sa.Text())
    condition = sa.or_(*(text.contains(old, autoescape=True) for old, _ in pairs))
    condition = condition if where is None else sa.and_(where, condition)
    for old, new in pairs:
        text = sa.func.replace(text, old, new, type_=sa.Text())
    is_postgres = op.get_bind().dialect.name == "postgresql"
    changed = sa.cast(text, sa.JSON()) if is_json and is_postgres else text
    op.execute(sa.table(table, stored).update().where(condition).values({column: changed}))


def _change_gates(table: str, key: str, checks: dict[str, str], fields: dict[str, str]) -> None:
    rows = sa.table(table, sa.column(key), sa.column("alias"), sa.column("gate", sa.JSON()))
    for owner, alias, gate in op.get_bind().execute(sa.select(*rows.c)).all():
        changed = {fields.get(field, field): value for field, value in gate.items()}
        changed["requires"] = [checks.get(check, check) for check in gate.get("requires", [])]
        op.execute(rows.update().where(rows.c[key] == owner, rows.c.alias == alias).values(gate=changed))


def _copy_fleet(old: tuple[str, str, str], new: tuple[str, str, str], states: dict[str, str]) -> None:
    """Copy both tables, because SQLite cannot rename constraints. `old` and `new`: table, name column, proof column."""
    (old_table, old_name, old_proof), (table, name, proof) = old, new
    op.execute(f"CREATE TABLE copied_node AS SELECT * FROM {old_table}")
    op.execute("CREATE TABLE copied_slot AS SELECT * FROM fleet_slot")
    op.drop_table("fleet_slot")
    op.drop_table(old_table)
    _create_fleet(table, name, proof)
    rest = "id, reporter, reporter_name, engine, base, alias, profile, on_demand, reach, said, heard_at, expires_at"
    op.execute(f"INSERT INTO {table} ({rest}, {name}) SELECT {rest}, {old_name} FROM copied_node")
    rest = "served_name, namespace, name, number, digest, state, reason, since"
    target, source = f"{name}_id, {proof}", f"{old_name}_id, {old_proof}"
    op.execute(f"INSERT INTO fleet_slot ({rest}, {target}) SELECT {rest}, {source} FROM copied_slot")
    _change_values("fleet_slot", "state", states)
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))")
    op.drop_table("copied_slot")
    op.drop_table("copied_node")


def _create_fleet(table: str, name: str, proof: str) -> None:
    op.create_table(
        table,
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("reporter", sa.String(), nullable=False),
        sa.Column("reporter_name", sa.String(), nullable=False),
        sa.Column(name, sa.String(), nullable=False),
        sa.Column("engine", sa.String(), nullable=False),
        sa.Column("base", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("on_demand", sa.Boolean(), nullable=False),
        sa.Column("reach", sa.JSON(), nullable=True),
        sa.Column("said", sa.String(), nullable=False),
        sa.Column("heard_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
        sa.UniqueConstraint("reporter", name, "engine", name=f"uq_{table}_reporter_{name}_engine"),
    )
    op.create_index(f"ix_{table}_expires_at", table, ["expires_at"])
    op.create_table(
        "fleet_slot",
        sa.Column(f"{name}_id", sa.Integer(), nullable=False),
        sa.Column("served_name", sa.String(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column(proof, sa.Boolean(), nullable=False),
        sa.Column("since", TIME, nullable=False),
        sa.ForeignKeyConstraint([f"{name}_id"], [f"{table}.id"], name=f"fk_fleet_slot_{name}_id"),
        sa.PrimaryKeyConstraint(f"{name}_id", "served_name", name="pk_fleet_slot"),
    )
    op.create_index("ix_fleet_slot_namespace", "fleet_slot", ["namespace"])
    op.create_index("ix_fleet_slot_digest", "fleet_slot", ["digest"])


def _copy_similarity(old: str, new: str) -> None:
    op.create_table(
        f"base_{new}",
        sa.Column("base_id", sa.Integer(), nullable=False),
        sa.Column("other_id", sa.Integer(), nullable=False),
        sa.Column(new, sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["base_id"], ["base.id"], name=f"fk_base_{new}_base_id"),
        sa.ForeignKeyConstraint(["other_id"], ["base.id"], name=f"fk_base_{new}_other_id"),
        sa.PrimaryKeyConstraint("base_id", "other_id", name=f"pk_base_{new}"),
    )
    op.execute(f"INSERT INTO base_{new} SELECT base_id, other_id, {old} FROM base_{old}")
    op.drop_table(f"base_{old}")


def _rename_norms(old: str, new: str) -> None:
    """There is a row a version, with kilobytes in each. Only PostgreSQL can rename the constraints, too."""
    if op.get_bind().dialect.name == "postgresql":
        op.rename_table(old, new)
        op.execute(f"ALTER TABLE {new} RENAME CONSTRAINT pk_{old} TO pk_{new}")
        op.execute(f"ALTER TABLE {new} RENAME CONSTRAINT fk_{old}_version_id TO fk_{new}_version_id")
        return
    op.create_table(
        new,
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("norms", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name=f"fk_{new}_version_id"),
        sa.PrimaryKeyConstraint("version_id", name=f"pk_{new}"),
    )
    op.execute(f"INSERT INTO {new} SELECT version_id, norms FROM {old}")
    op.drop_table(old)


def _change_spelling(codes: dict[str, str], keys: dict[str, str], old_tag: str, new_tag: str) -> None:
    pairs = [(f'"{old}": ', f'"{new}": ') for old, new in keys.items()]
    for table, column in (("version", "facts"), ("base", "spec"), ("job", "payload")):
        _replace(table, column, pairs)
    _replace("verdict", "findings", [(f'"{old}"', f'"{new}"') for old, new in codes.items()])
    compact = [(f'"{old}":', f'"{new}":') for old, new in keys.items()]
    _replace("base_identity", "identity", compact, is_json=False)
    tag = sa.table("version_tag", sa.column("key", sa.String()))
    moved = sa.func.replace(tag.c.key, old_tag, new_tag)
    op.execute(tag.update().where(tag.c.key.startswith(old_tag, autoescape=True)).values(key=moved))
