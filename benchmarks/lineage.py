"""`make bench-lineage`: ancestors and descendants among 100,000 edges, on SQLite and on PostgreSQL.

Versions stand in families of 1,000: each goes on from one half its number, every tenth was merged with another, and the
first of each family was trained on a data set of its own. What is timed is the request as the server handles it: look
up the root, one recursive statement, the graph made of it; and the same over REST in this process. Peers in the same
run: one look-up by primary key in the same database (the floor of any question), and a search in breadth over the same
edges held in this process's memory, which knows nothing of rights and of no database.

    ADAPTER_BENCH_EDGES=100000
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import insert, text
from sqlmodel import select

from registry.digest import Digest
from registry.names import AdapterName
from registry.server.actors import TRUSTED
from registry.server.catalog import lineage
from registry.server.database.models import AdapterRow, EdgeRow, VersionInputRow, VersionRow
from tests import services
from tests.harness import Harness

EDGES = int(os.environ.get("ADAPTER_BENCH_EDGES") or 100_000)
FAMILY = 1000
ROUNDS = 15
BATCH = 5000
AIM_MS = 50
TREE = AdapterName("acme", "family-000003")
Edges = list[tuple[int, int]]


def drawn() -> tuple[int, Edges]:
    """How many versions, and (child, parent) of every edge: numbers of versions from 0."""
    edges: Edges = []
    version = 0
    while len(edges) < EDGES:
        first = version - version % FAMILY
        index = version - first
        if index:
            edges.append((version, first + (index + 1) // 2 - 1))
        if index and index % 10 == 0:
            edges.append((version, first + index - 1))
        version += 1
    return version, edges[:EDGES]


def insert_versions(harness: Harness, versions: int, edges: Edges) -> None:
    harness.add_base()
    harness.push("acme/a-pushed-one")
    digests = [str(Digest.of(b"version %d" % n)) for n in range(versions)]
    with harness.session(write=True) as session:
        adapter = session.exec(select(AdapterRow)).one().model_dump()
        version = session.exec(select(VersionRow)).one().model_dump()
        families = range(-(-versions // FAMILY))
        connection = session.connection()
        named = [adapter | {"id": 1000 + n, "name": f"family-{n:06d}", "newest_number": FAMILY} for n in families]
        connection.execute(insert(AdapterRow), named)
        for batch in _batches(versions):
            connection.execute(insert(VersionRow), [version | _version(n, digests[n]) for n in batch])
        links = [
            {"child_id": 10_000 + c, "parent_digest": digests[p], "relation": "continued", "parent_name": ""}
            for c, p in edges
        ]
        for batch in _batches(len(links)):
            connection.execute(insert(EdgeRow), links[batch.start : batch.stop])
        inputs = [
            {"version_id": 10_000 + n * FAMILY, "position": 0, "relation": "dataset", "node": f"dataset:s3://d/{n}",
             "name": "", "uri": f"s3://d/{n}", "digest": None}
            for n in families
        ]  # fmt: skip
        connection.execute(insert(VersionInputRow), inputs)
    with harness.engine.connect() as connection:
        connection.execute(text("ANALYZE"))
        connection.commit()


def _version(number: int, digest: str) -> dict[str, Any]:
    adapter, index = divmod(number, FAMILY)
    return {"id": 10_000 + number, "adapter_id": 1000 + adapter, "number": index + 1, "digest": digest}


def _batches(count: int) -> Iterator[range]:
    for start in range(0, count, BATCH):
        yield range(start, min(start + BATCH, count))


def count_edges(near: dict[int, list[int]], root: int) -> int:
    """How many edges a search in breadth finds from here."""
    visited, waiting, count = {root}, [root], 0
    while waiting:
        following = []
        for node in waiting:
            for other in near.get(node, ()):
                count += 1
                if other not in visited:
                    visited.add(other)
                    following.append(other)
        waiting = following
    return count


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Milliseconds of wall time and of this process's CPU (medians), and the last response."""
    wall_times, cpus, response = [], [], call()
    for _ in range(ROUNDS):
        cpu, wall = time.process_time(), time.perf_counter()
        response = call()
        wall_times.append(1000 * (time.perf_counter() - wall))
        cpus.append(1000 * (time.process_time() - cpu))
    return statistics.median(wall_times), statistics.median(cpus), response


def measured(harness: Harness, edges: Edges) -> Iterator[tuple[str, float, float, int]]:
    """(what, wall, CPU, edges found) of the peers and of the questions."""
    below: dict[int, list[int]] = {}
    above: dict[int, list[int]] = {}
    for child, parent in edges:
        below.setdefault(parent, []).append(child)
        above.setdefault(child, []).append(parent)
    root, leaf = 3 * FAMILY, 4 * FAMILY - 1
    gc.collect()
    gc.freeze()  # as a server starts; else the collector walks over 100,000 edges in every other question
    with harness.session() as session:

        def look_up() -> Any:
            session.expunge_all()
            return session.get(VersionRow, 10_000 + leaf)

        yield _figure("lookup", timed(look_up), lambda _: 1)
        yield _figure("bfs_descendants", timed(lambda: count_edges(below, root)), int)
        yield _figure("bfs_ancestors", timed(lambda: count_edges(above, leaf)), int)
        questions: dict[str, Callable[[], Any]] = {
            "descendants": lambda: lineage.descendants(session, TRUSTED, TREE, 1),
            "ancestors": lambda: lineage.ancestors(session, TRUSTED, TREE, FAMILY),
            "dataset": lambda: lineage.dataset_descendants(session, TRUSTED, "s3://d/3"),
            "base_truncated": lambda: lineage.base_lineage(session, TRUSTED, "tiny-llama", upwards=False),
        }
        for name, ask in questions.items():
            yield _figure(name, timed(ask), _links)
    yield _figure("rest_descendants", timed(lambda: harness.admin.lineage(f"{TREE}@1", down=True)), _links)
    yield _figure("rest_ancestors", timed(lambda: harness.admin.lineage(f"{TREE}@{FAMILY}")), _links)


def _figure(name: str, timing: tuple[float, float, Any], count: Callable[[Any], int]) -> tuple[str, float, float, int]:
    return name, timing[0], timing[1], count(timing[2])


def _links(lineage: Any) -> int:
    return sum(edge.relation == "continued" for edge in lineage.edges)


def main() -> None:
    versions, edges = drawn()
    figures: dict[str, Any] = {"edges": len(edges), "versions": versions, "aim_ms": AIM_MS}
    ratios: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        services.postgres_url() as server,
        services.fresh_database(server) as url,
    ):
        for kind, database in (("sqlite", f"sqlite:///{Path(folder)}/registry.db"), ("postgres", url)):
            with Harness(database) as harness:
                insert_versions(harness, versions, edges)
                wall: dict[str, float] = {}
                for name, milliseconds, cpu, edge_count in measured(harness, edges):
                    wall[name] = milliseconds
                    figures[f"{kind}_{name}_ms"] = round(milliseconds, 3)
                    figures[f"{kind}_{name}_cpu_ms"] = round(cpu, 3)
                    figures[f"{kind}_{name}_edges"] = edge_count
                    print(f"{kind:9} {name:17} {milliseconds:9.3f} ms, {cpu:9.3f} ms of CPU here, {edge_count:6} edges")
            for name in ("descendants", "ancestors"):
                if figures[f"{kind}_{name}_edges"] != figures[f"{kind}_bfs_{name}_edges"]:
                    raise SystemExit(f"{kind}: {name} and the search in memory found different edges")
                ratios[f"{kind}_{name}_time_vs_lookup"] = round(wall[name] / wall["lookup"], 2)
                ratios[f"{kind}_{name}_time_vs_bfs_in_memory"] = round(wall[name] / wall[f"bfs_{name}"], 2)
                ratios[f"{kind}_{name}_time_vs_aim"] = round(wall[name] / AIM_MS, 3)
    machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
    print(json.dumps({"bench": "lineage", "ratios": ratios, "figures": figures, "machine": machine}))


if __name__ == "__main__":
    main()
