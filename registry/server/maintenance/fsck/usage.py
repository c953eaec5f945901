"""Check the counters of usage against a recount, some namespaces at a time; `deep` adds the differences to them.

Counters change in the transactions that change what they count, so in one snapshot they equal a recount. A difference
stays the same while others push, so adding it later is right. Only another correction changes it: one at a time
recounts and adds.
"""

from typing import Any

from sqlalchemy import text
from sqlmodel import Session

from registry.errors import invalid_cursor
from registry.server.database import db
from registry.server.maintenance.fsck.run import FsckRun

BATCH = 100
_PAGE = text(
    "SELECT namespace FROM (SELECT namespace FROM adapter UNION SELECT namespace FROM namespace_usage "
    "UNION SELECT namespace FROM base_usage) AS known WHERE namespace > :after ORDER BY namespace LIMIT :batch"
)
_NAMESPACES = text(
    "SELECT namespace, shard, sum(size_bytes) AS size_bytes, sum(versions) AS versions FROM ("
    "SELECT namespace, adapter.id % 8 AS shard, sum(size_bytes) AS size_bytes, count(*) AS versions "
    "FROM adapter JOIN version ON version.adapter_id = adapter.id "
    "WHERE namespace > :after AND namespace <= :last AND purged_at IS NULL GROUP BY namespace, adapter.id % 8 "
    "UNION ALL SELECT namespace, shard, -size_bytes, -versions FROM namespace_usage "
    "WHERE namespace > :after AND namespace <= :last) AS counted "
    "GROUP BY namespace, shard HAVING sum(size_bytes) <> 0 OR sum(versions) <> 0 ORDER BY namespace, shard"
)
_BASES = text(
    "SELECT base_id, namespace, shard, sum(adapters) AS adapters FROM ("
    "SELECT base_id, namespace, adapter.id % 8 AS shard, count(DISTINCT adapter.id) AS adapters "
    "FROM adapter JOIN version ON version.adapter_id = adapter.id "
    "WHERE namespace > :after AND namespace <= :last AND deleted_at IS NULL "
    "GROUP BY base_id, namespace, adapter.id % 8 "
    "UNION ALL SELECT base_id, namespace, shard, -adapters FROM base_usage "
    "WHERE namespace > :after AND namespace <= :last) AS counted "
    "GROUP BY base_id, namespace, shard HAVING sum(adapters) <> 0 ORDER BY base_id, namespace, shard"
)
_ADD_TO_NAMESPACE = text(
    "INSERT INTO namespace_usage (namespace, shard, size_bytes, versions) "
    "VALUES (:namespace, :shard, :size_bytes, :versions) ON CONFLICT (namespace, shard) DO UPDATE SET "
    "size_bytes = namespace_usage.size_bytes + excluded.size_bytes, "
    "versions = namespace_usage.versions + excluded.versions"
)
_ADD_TO_BASE = text(
    "INSERT INTO base_usage (base_id, namespace, shard, adapters) VALUES (:base_id, :namespace, :shard, :adapters) "
    "ON CONFLICT (base_id, namespace, shard) DO UPDATE SET adapters = base_usage.adapters + excluded.adapters"
)
_DELETE_ZEROS = (
    text(
        "DELETE FROM namespace_usage WHERE versions = 0 AND size_bytes = 0 "
        "AND namespace > :after AND namespace <= :last"
    ),
    text("DELETE FROM base_usage WHERE adapters = 0 AND namespace > :after AND namespace <= :last"),
)


def check_usage(run: FsckRun, after: str) -> str:
    """Check the counters of the next namespaces; return the last one, empty at the end."""
    if not (after.isascii() and after.isprintable()):
        raise invalid_cursor()
    with run.snapshot() as session:
        page = session.connection().execute(_PAGE, {"after": after, "batch": BATCH}).scalars().all()
        where = {"after": after, "last": page[-1] if page else after}
        differences = _recount(session, where)
    if run.deep and any(differences):
        _repair(run, where)
    for namespace in sorted({str(row["namespace"]) for rows in differences for row in rows}):
        message = f"its counters of usage are wrong{', and were corrected' if run.deep else ''}"
        run.add("usage.counters_differ", namespace, message, severity="warning" if run.deep else "error")
    run.count("namespaces", len(page))
    return str(page[-1]) if len(page) == BATCH else ""


def _recount(session: Session, where: dict[str, str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the counters of namespaces and those of bases lack (or have too much, below zero)."""
    rows = session.connection().execute(_NAMESPACES, where).mappings()
    of_namespaces = [
        {**row, "size_bytes": int(row["size_bytes"]), "versions": int(row["versions"])} for row in rows
    ]  # fmt: skip
    rows = session.connection().execute(_BASES, where).mappings()
    return of_namespaces, [{**row, "adapters": int(row["adapters"])} for row in rows]


def _repair(run: FsckRun, where: dict[str, str]) -> None:
    """Recount, and add the differences in the order in which pushes lock counters."""
    with db.session(run.engine) as session:
        connection = session.connection()
        db.lock_names(session, "counters of usage")
        for statement, rows in zip((_ADD_TO_NAMESPACE, _ADD_TO_BASE), _recount(session, where), strict=True):
            for row in rows:
                connection.execute(statement, row)
        for statement in _DELETE_ZEROS:
            connection.execute(statement, where)
