"""Usage counters: what each namespace holds, and how many adapters each base has; and indexes for lists

Rule of this folder: see script.py.mako. Triggers count, so that servers of the step before this one do so, too (ADR
40). On PostgreSQL the step keeps pushes waiting while it counts and indexes what is there: some seconds for a million
versions.

`shard` is the adapter's id modulo 8: pushes of different adapters rarely wait for each other's rows. On SQLite a step
that copies `version` or `adapter` loses the triggers and has to create them again.

Revision: 0037
Follows: 0036
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0037"
down_revision = "0036"
branch_labels = None
depends_on = None

_INDEXES = (
    ("adapter", "ix_adapter_created_by", ["created_by"]),
    ("version", "ix_version_base_id_adapter_id", ["base_id", "adapter_id", "deleted_at"]),
    ("version", "ix_version_method_adapter_id", ["method", "adapter_id"]),
    ("version", "ix_version_rank_adapter_id", ["rank", "adapter_id"]),
    ("alias", "ix_alias_alias_adapter_id", ["alias", "adapter_id"]),
    ("job", "ix_job_created_at_id", ["created_at", "id"]),
)
_FAILED = sa.text("outcome = 'fail'")
_COUNTED = "adapter_id, base_id, size_bytes, deleted_at, purged_at"
_NAMESPACE_COLUMNS = "namespace, shard, size_bytes, versions"
_BASE_COLUMNS = "base_id, namespace, shard, adapters"


def upgrade() -> None:
    op.create_table(
        "namespace_usage",
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("versions", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "shard", name="pk_namespace_usage"),
    )
    op.create_table(
        "base_usage",
        sa.Column("base_id", sa.Integer(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("adapters", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["base_id"], ["base.id"], name="fk_base_usage_base_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("base_id", "namespace", "shard", name="pk_base_usage"),
    )
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    if not is_sqlite:
        op.execute("LOCK TABLE adapter, version IN SHARE ROW EXCLUSIVE MODE")
    for table, name, columns in _INDEXES:
        op.create_index(name, table, columns)
    op.create_index(
        "ix_verdict_failure", "verdict", ["check", "profile", "version_id"],
        postgresql_where=_FAILED, sqlite_where=_FAILED,
    )  # fmt: skip
    op.create_index("ix_job_subject", "job", ["subject"], postgresql_ops={"subject": "text_pattern_ops"})
    for statement in _sqlite_triggers() if is_sqlite else _postgres_triggers():
        op.execute(statement)
    op.execute(
        f"INSERT INTO namespace_usage ({_NAMESPACE_COLUMNS}) "
        "SELECT namespace, adapter.id % 8, sum(size_bytes), count(*) FROM adapter "
        "JOIN version ON adapter_id = adapter.id WHERE purged_at IS NULL GROUP BY namespace, adapter.id % 8"
    )
    op.execute(
        f"INSERT INTO base_usage ({_BASE_COLUMNS}) "
        "SELECT base_id, namespace, adapter.id % 8, count(DISTINCT adapter.id) FROM adapter "
        "JOIN version ON adapter_id = adapter.id WHERE deleted_at IS NULL GROUP BY base_id, namespace, adapter.id % 8"
    )
    op.drop_index("ix_version_base_id", table_name="version")  # last: readers wait for it


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for name in ("version_insert", "version_update", "version_delete", "adapter_move"):
            op.execute(f"DROP TRIGGER usage_{name}")
    else:
        op.execute("LOCK TABLE adapter, alias, version, verdict, job")  # in the order in which queries join them
        for name in ("insert", "update", "delete"):
            op.execute(f"DROP FUNCTION usage_version_{name}() CASCADE")
        op.execute("DROP FUNCTION usage_adapter_move() CASCADE")
    op.create_index("ix_version_base_id", "version", ["base_id"])
    op.drop_index("ix_verdict_failure", table_name="verdict")
    op.drop_index("ix_job_subject", table_name="job")
    for table, name, _ in _INDEXES:
        op.drop_index(name, table_name=table)
    op.drop_table("base_usage")
    op.drop_table("namespace_usage")


# ------------------------------------------------------------------ statements of both databases
def _add_to_namespaces(rows: str) -> str:
    return (
        f"INSERT INTO namespace_usage ({_NAMESPACE_COLUMNS}) {rows} ON CONFLICT (namespace, shard) DO UPDATE SET "
        "size_bytes = namespace_usage.size_bytes + excluded.size_bytes, "
        "versions = namespace_usage.versions + excluded.versions;"
    )


def _add_to_bases(rows: str) -> str:
    return (
        f"INSERT INTO base_usage ({_BASE_COLUMNS}) {rows} ON CONFLICT (base_id, namespace, shard) DO UPDATE SET "
        "adapters = base_usage.adapters + excluded.adapters;"
    )


def _delete_zeros(namespace_keys: str, base_keys: str) -> str:
    return (
        f"DELETE FROM namespace_usage WHERE versions <= 0 AND (namespace, shard) IN ({namespace_keys});\n"
        f"DELETE FROM base_usage WHERE adapters <= 0 AND (base_id, namespace, shard) IN ({base_keys});"
    )


def _move(adapter: str) -> str:
    """The statements after an adapter moved from the namespace `old.namespace` to `new.namespace`."""
    own = f"FROM version WHERE adapter_id = {adapter}"
    moves = "(SELECT old.namespace AS namespace, -1 AS sign UNION ALL SELECT new.namespace, 1) AS moves"
    return "\n".join((
        _add_to_namespaces(
            f"SELECT namespace, {adapter} % 8, sign * size_bytes, sign * versions FROM {moves}, "
            f"(SELECT coalesce(sum(size_bytes), 0) AS size_bytes, count(*) AS versions {own} AND purged_at IS NULL) "
            "AS own WHERE versions > 0 ORDER BY namespace"
        ),
        _add_to_bases(
            f"SELECT base_id, namespace, {adapter} % 8, sign FROM {moves}, "
            f"(SELECT DISTINCT base_id {own} AND deleted_at IS NULL) AS own WHERE true ORDER BY base_id, namespace"
        ),
        _delete_zeros(
            f"SELECT old.namespace, {adapter} % 8",
            f"SELECT base_id, old.namespace, {adapter} % 8 {own}",
        ),
    ))  # fmt: skip


# ------------------------------------------------------------------ SQLite: a trigger for each row
def _sqlite_triggers() -> tuple[str, ...]:
    changed = " OR ".join(f"old.{column} IS NOT new.{column}" for column in _COUNTED.split(", "))
    add, remove = _count_row("new", 1), _count_row("old", -1)
    owner = "FROM adapter WHERE id = old.adapter_id"
    delete = _delete_zeros(f"SELECT namespace, id % 8 {owner}", f"SELECT old.base_id, namespace, id % 8 {owner}")
    return (
        f"CREATE TRIGGER usage_version_insert AFTER INSERT ON version BEGIN {add} END",
        f"CREATE TRIGGER usage_version_update AFTER UPDATE OF {_COUNTED} ON version WHEN {changed} "
        f"BEGIN {remove} {add} {delete} END",
        f"CREATE TRIGGER usage_version_delete AFTER DELETE ON version BEGIN {remove} {delete} END",
        "CREATE TRIGGER usage_adapter_move AFTER UPDATE OF namespace ON adapter WHEN old.namespace <> new.namespace "
        f"BEGIN {_move('new.id')} END",
    )


def _count_row(row: str, sign: int) -> str:
    """Add or subtract one version; of its base, unless another version of its adapter counts there."""
    adapter = f"FROM adapter WHERE adapter.id = {row}.adapter_id"
    others = (
        f"SELECT 1 FROM version WHERE base_id = {row}.base_id AND adapter_id = {row}.adapter_id "
        f"AND deleted_at IS NULL AND id <> {row}.id"
    )
    return "\n".join((
        _add_to_namespaces(
            f"SELECT namespace, id % 8, {sign} * {row}.size_bytes, {sign} {adapter} AND {row}.purged_at IS NULL"
        ),
        _add_to_bases(
            f"SELECT {row}.base_id, namespace, id % 8, {sign} {adapter} AND {row}.deleted_at IS NULL "
            f"AND NOT EXISTS ({others})"
        ),
    ))  # fmt: skip


# ------------------------------------------------------------------ PostgreSQL: a trigger for each statement
_ROWS = {
    "insert": ("new_rows WHERE false", "new_rows WHERE true"),
    "update": ("old_rows WHERE true", "new_rows WHERE true"),
    "delete": ("old_rows WHERE true", "old_rows WHERE false"),
}
"""Operation → the rows of before and after."""


def _postgres_triggers() -> list[str]:
    statements = []
    for operation, (before, after) in _ROWS.items():
        name = f"usage_version_{operation}"
        tables = [f"{age.upper()} TABLE AS {age}_rows" for age in ("old", "new") if f"{age}_rows" in before + after]
        statements.append(_function(name, _count_rows(operation, before, after)))
        statements.append(
            f"CREATE TRIGGER {name} AFTER {operation.upper()} ON version REFERENCING {' '.join(tables)} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {name}()"
        )
    lock = "PERFORM 1 FROM version WHERE adapter_id = new.id ORDER BY id FOR UPDATE;"  # their bases may change
    statements.append(_function("usage_adapter_move", f"{lock}\n{_move('new.id')}"))
    statements.append(
        "CREATE TRIGGER usage_adapter_move AFTER UPDATE OF namespace ON adapter FOR EACH ROW "
        "WHEN (old.namespace <> new.namespace) EXECUTE FUNCTION usage_adapter_move()"
    )
    return statements


def _function(name: str, body: str) -> str:
    """A trigger's function. A session keeps its plans, so none may be that for a table which was small then."""
    settings = " ".join(f"SET enable_{scan} = off" for scan in ("seqscan", "hashjoin", "mergejoin"))
    return (
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql {settings} AS $$ BEGIN\n{body}\nRETURN NULL; END $$"
    )


def _count_rows(operation: str, before: str, after: str) -> str:
    """Add the difference. Rows are locked in one order, so that no two transactions wait for each other.

    The row of the namespace is locked even if nothing is added to it: another transaction that changes versions of the
    same adapter comes before, and is seen by the next statement, or waits.
    """
    changes = (
        f"SELECT adapter_id, size_bytes, -1 AS sign FROM {before} AND purged_at IS NULL "
        f"UNION ALL SELECT adapter_id, size_bytes, 1 FROM {after} AND purged_at IS NULL"
    )
    pairs = (
        "SELECT adapter_id, base_id, bool_or(is_old) AS is_old FROM ("
        f"SELECT adapter_id, base_id, true AS is_old FROM {before} AND deleted_at IS NULL "
        f"UNION ALL SELECT adapter_id, base_id, false FROM {after} AND deleted_at IS NULL) AS changed "
        "GROUP BY adapter_id, base_id"
    )
    # No plan may read all versions: EXISTS could be hashed, and `deleted_at` has an index of its own.
    live = (
        "SELECT 1 FROM version WHERE base_id = pair.base_id AND adapter_id = pair.adapter_id "
        "AND (deleted_at IS NULL) IS TRUE"
    )
    counted_now = f"(({live} LIMIT 1) IS NOT NULL)"
    counted_before = f"(is_old OR ({live} AND id NOT IN (SELECT id FROM {after}) LIMIT 1) IS NOT NULL)"
    statements = [
        _add_to_namespaces(
            f"SELECT namespace, id % 8, sum(sign * size_bytes), sum(sign) FROM ({changes}) AS change "
            "JOIN adapter ON id = adapter_id GROUP BY namespace, id % 8 ORDER BY namespace, id % 8"
        ),
        _add_to_bases(
            f"SELECT base_id, namespace, id % 8, sum(sign) FROM (SELECT adapter_id, base_id, "
            f"{counted_now}::int - {counted_before}::int AS sign FROM ({pairs}) AS pair) AS change "
            "JOIN adapter ON id = adapter_id WHERE sign <> 0 GROUP BY base_id, namespace, id % 8 "
            "ORDER BY base_id, namespace, id % 8"
        ),
    ]
    if operation == "update":
        statements.insert(
            0,
            f"IF NOT EXISTS (SELECT id, {_COUNTED} FROM old_rows EXCEPT SELECT id, {_COUNTED} FROM new_rows) "
            "THEN RETURN NULL; END IF;",
        )
    if operation != "insert":
        owners = "FROM old_rows JOIN adapter ON adapter.id = adapter_id"
        statements.append(
            _delete_zeros(
                f"SELECT namespace, adapter.id % 8 {owners}", f"SELECT base_id, namespace, adapter.id % 8 {owners}"
            )
        )
    return "\n".join(statements)
