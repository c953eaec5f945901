"""`make bench-recheck-engines`: 10,000 versions evaluated again after engine rules changed, on SQLite and PostgreSQL.

The versions are rows that copy the facts of the cases in tests/engines (rsLoRA, DoRA, patterns, ranks …), each with a
verdict `compat` and old verdicts `engine`. Then three engines evaluate everything, as in `adapter recheck-engines`.
The goal is a minute, and no blob is read: the store refuses every read while it runs, and its refusals are counted.

    figures   <database>_seconds, _cpu_seconds, _versions_per_second, _verdicts, and blobs_read
    ratios    <database>_time_vs_a_minute (less than 1 meets the goal)

    ADAPTER_BENCH_VERSIONS=10000
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlalchemy import insert
from sqlmodel import select

from registry.engines import facts as engine_facts
from registry.server.database.models import AdapterRow, VerdictRow, VersionRow
from registry.server.evaluation import engine_profiles
from registry.server.maintenance import reevaluate
from tests import services
from tests.engines.cases import CASES, facts_of
from tests.harness import Harness
from tests.memory_blobs import MemoryBlobs

VERSIONS = int(os.environ.get("ADAPTER_BENCH_VERSIONS") or 10_000)
ENGINES = "vllm==0.32.0,max_lora_rank=32 vllm==0.33.0,max_lora_rank=64 sglang==0.5.23"
GOAL_SECONDS = 60.0
BATCH = 2000


class CountingBlobs(MemoryBlobs):
    """A store that counts reads once it is shut."""

    shut = False
    reads = 0

    def read(self, key: str, start: int, length: int) -> bytes:
        if self.shut:
            self.reads += 1
            raise RuntimeError(f"{key} was read")
        return super().read(key, start, length)


def insert_rows(harness: Harness) -> None:
    """The versions, each with `compat` and, for every engine, a verdict that older rules made."""
    harness.add_base()
    harness.push("acme/pattern")
    stored = [engine_facts.to_stored(facts_of(files)) for files in CASES.values()]
    with harness.session(write=True) as session:
        adapter = session.exec(select(AdapterRow)).one()
        version = session.exec(select(VersionRow)).one().model_dump()
        compat = session.exec(select(VerdictRow).where(VerdictRow.check == "compat")).one().model_dump(exclude={"id"})
        old = [
            compat | {"check": "engine", "profile": str(profile), "made_by": {"rules": "sha256:old"}}
            for profile in engine_profiles.parse_setting(ENGINES)
        ]
        for start in range(0, VERSIONS - 1, BATCH):
            numbers = range(start, min(start + BATCH, VERSIONS - 1))
            new = [
                version | {"id": 1000 + n, "adapter_id": adapter.id, "number": 2 + n, "digest": f"sha256:{n:064x}",
                           "facts": {**version["facts"], "engine": stored[n % len(stored)]}} for n in numbers
            ]  # fmt: skip
            session.connection().execute(insert(VersionRow), new)
            verdicts = [pattern | {"version_id": 1000 + n} for n in numbers for pattern in (compat, *old)]
            session.connection().execute(insert(VerdictRow), verdicts)


def measured(kind: str, harness: Harness, blobs: CountingBlobs) -> dict[str, Any]:
    insert_rows(harness)
    blobs.shut = True
    started, worked = time.perf_counter(), time.process_time()
    done = reevaluate.evaluate_again(harness.engine, blobs, engine_profiles.parse_setting(ENGINES))
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    if done.versions != VERSIONS:
        raise RuntimeError(f"{done.versions} of {VERSIONS} versions were checked")
    print(f"{kind:9} {done.versions} versions, {done.verdicts} verdicts in {seconds:.1f} s ({cpu:.1f} s of CPU here)")
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "verdicts": done.verdicts,
            "versions_per_second": round(done.versions / seconds)}  # fmt: skip


def main() -> None:
    figures: dict[str, Any] = {"versions": VERSIONS, "engines": len(ENGINES.split()), "blobs_read": 0}
    ratios: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        services.postgres_url() as server,
        services.fresh_database(server) as url,
    ):
        for kind, database in (("sqlite", f"sqlite:///{Path(folder)}/registry.db"), ("postgres", url)):
            blobs = CountingBlobs()
            with Harness(database, blobs=blobs) as harness:
                measurements = measured(kind, harness, blobs)
            figures |= {f"{kind}_{name}": value for name, value in measurements.items()}
            figures["blobs_read"] += blobs.reads
            per_goal = measurements["seconds"] * 10_000 / VERSIONS / GOAL_SECONDS
            ratios[f"{kind}_time_vs_a_minute"] = round(per_goal, 4)
    machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
    print(json.dumps({"bench": "recheck_engines", "ratios": ratios, "figures": figures, "machine": machine}))


if __name__ == "__main__":
    main()
