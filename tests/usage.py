"""The counters of usage beside a recount of the versions."""

from __future__ import annotations

from sqlalchemy import Engine, text

from registry.server.database import db

_JOIN = "FROM adapter JOIN version ON version.adapter_id = adapter.id"
COUNTS = {
    "SELECT namespace, shard, size_bytes, versions FROM namespace_usage":
        f"SELECT namespace, adapter.id % 8, sum(size_bytes), count(*) {_JOIN} WHERE purged_at IS NULL "
        "GROUP BY namespace, adapter.id % 8",
    "SELECT base_id, namespace, shard, adapters FROM base_usage":
        f"SELECT base_id, namespace, adapter.id % 8, count(DISTINCT adapter.id) {_JOIN} WHERE deleted_at IS NULL "
        "GROUP BY base_id, namespace, adapter.id % 8",
}  # fmt: skip
"""What reads the counters → what they count."""


def find_differences(engine: Engine) -> list[tuple[object, ...]]:
    """Rows of the counters that a recount lacks, and the other way round."""
    with db.snapshot(engine) as session:
        return [
            tuple(row)
            for pair in COUNTS.items()
            for row in set.symmetric_difference(*(set(session.connection().execute(text(sql)).all()) for sql in pair))
        ]
