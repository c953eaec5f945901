"""`make bench-gc`: garbage collection over 1,000,000 blobs of which every tenth is needed by no one, on PostgreSQL.

The rows are written straight into the tables. The store holds none of the bytes: what is measured is what the database
does, and how long a push could be made to wait, which is the longest transaction that wrote. A real store adds its own
time for each deletion, outside of transactions. Ratio: the second run, which finds nothing, over the first.

    ADAPTER_BENCH_BLOBS=1000000
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, event, text
from sqlmodel import select

from registry.api.maintenance import GcReport, GcRequest
from registry.server.database import db
from registry.server.database.models import VersionRow
from registry.server.storage.blobs import Stat
from tests import services
from tests.harness import Harness
from tests.memory_blobs import MemoryBlobs

BLOBS = int(os.environ.get("ADAPTER_BENCH_BLOBS") or 1_000_000)
REQUESTS_LIMIT = 1000
DIGEST = "'sha256:' || encode(sha256(i::text::bytea), 'hex')"


class Bare(MemoryBlobs):
    """Deletes what it never had, and has nothing to list."""

    def list(self, _prefix: str) -> Iterator[Stat]:
        return iter(())

    def delete(self, _key: str) -> None:
        return None


class Transactions:
    """How long those that wrote took, in seconds."""

    def __init__(self, engine: Any) -> None:
        self.seconds: list[float] = []
        self._begun: dict[int, list[float]] = {}
        event.listen(engine, "begin", self._begin)
        event.listen(engine, "before_cursor_execute", self._sent)
        event.listen(engine, "commit", self._commit)

    def _begin(self, connection: Connection) -> None:
        self._begun[id(connection)] = [time.perf_counter(), 0]

    def _sent(self, connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith("SELECT") or "FOR UPDATE" in statement:
            self._begun.get(id(connection), [0, 0])[1] = 1

    def _commit(self, connection: Connection) -> None:
        began, wrote = self._begun.pop(id(connection))
        if wrote:
            self.seconds.append(time.perf_counter() - began)


def fill(harness: Harness) -> None:
    harness.add_base()
    harness.push("acme/support")
    with harness.session(write=True) as session:
        version = session.exec(select(VersionRow.id)).one()
        for statement in (
            "INSERT INTO blob (digest, size_bytes, state, created_at)"
            f" SELECT {DIGEST}, 1000, 'live', now() FROM generate_series(1, {BLOBS}) AS i",
            "INSERT INTO version_file (version_id, path, digest, size_bytes, media_type)"
            f" SELECT {version}, 'file-' || i, {DIGEST}, 1000, 'text/plain'"
            f" FROM generate_series(1, {BLOBS}) AS i WHERE i % 10 > 0",
        ):
            session.connection().execute(text("SET LOCAL statement_timeout = 0"))
            session.connection().execute(text(statement))
    with db.bind(harness.engine, write=False).connect() as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE"))


def collect(harness: Harness) -> tuple[GcReport, int, float]:
    """The report of a whole run, its requests, and its seconds."""
    began, report, cursor = time.perf_counter(), GcReport(), ""
    for number in range(1, REQUESTS_LIMIT):
        report += harness.admin.collect(GcRequest(grace_seconds=0, cursor=cursor))
        cursor = report.next_cursor
        if not cursor:
            return report, number, time.perf_counter() - began
    raise RuntimeError(f"not at its end after {REQUESTS_LIMIT} requests")


def main() -> None:
    with services.postgres_url() as server, services.fresh_database(server) as url:
        harness = Harness(url, blobs=Bare())
        try:
            fill(harness)
            transactions = Transactions(harness.engine)
            first, requests, seconds = collect(harness)
            second, _, again = collect(harness)
        finally:
            harness.transport.close()
            harness.engine.dispose()
    if (first.blobs_deleted, second.blobs_deleted) != (BLOBS // 10, 0):
        raise RuntimeError(f"{first.blobs_deleted} were deleted, then {second.blobs_deleted}")
    figures = {
        "blobs": BLOBS,
        "blobs_deleted": first.blobs_deleted,
        "seconds": round(seconds, 1),
        "requests": requests,
        "writing_transactions": len(transactions.seconds),
        "longest_writing_transaction_seconds": round(max(transactions.seconds), 3),
        "seconds_when_nothing_goes": round(again, 1),
    }
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    ratios = {"gc_time_nothing_goes_vs_a_tenth_goes": round(again / seconds, 3)}
    print(json.dumps({"bench": "gc", "ratios": ratios, "figures": figures, "machine": machine}))


if __name__ == "__main__":
    main()
