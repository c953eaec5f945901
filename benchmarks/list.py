"""`make bench-list`: a page of the list of 100,000 adapters, the first and the thousandth, on SQLite and on PostgreSQL.

Requests go through the application and its client in this process; the rows are written straight into the tables, as
copies of one pushed adapter that differ in name, base, rank, owner and tags. A page holds 100 adapters, so that page
1,000 is the last one. Ratio: time of page 1,000 over time of page 1 (medians; 1.0 is equal).

    ADAPTER_BENCH_ADAPTERS=100000      how many, in hundreds
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests import many_adapters, services
from tests.harness import Harness

ADAPTERS = int(os.environ.get("ADAPTER_BENCH_ADAPTERS") or 100_000)
PAGE = 100
ROUNDS = 15
SEARCHES: dict[str, dict[str, Any]] = {
    "all": {},
    "method": {"method": "lora"},
    "base": {"base": "tiny-llama"},
    "rank": {"rank_min": 8, "rank_max": 64},
    "target": {"target": ["q_proj"]},
    "owner": {"owner": "token:admin"},
    "text": {"text": "shop"},
    "words": {"text": "acme shop"},
    "annotation": {"annotation": ["tier=gold"]},
}
"""Every adapter but the last one matches every search, so that page 1,000 exists."""


def measured(harness: Harness) -> dict[str, dict[str, float]]:
    """Search → milliseconds of page 1 and of page 1,000 (medians of alternating requests)."""
    last = f"acme/shop-{ADAPTERS - 2 - PAGE - 1:06d}"
    figures = {}
    for name, search in SEARCHES.items():
        first: list[float] = []
        thousandth: list[float] = []
        for _ in range(ROUNDS):
            for cursor, into in (("", first), (last, thousandth)):
                started = time.perf_counter()
                page = harness.admin.adapters(limit=PAGE, cursor=cursor, **search)
                into.append(1000 * (time.perf_counter() - started))
                assert len(page.items) == PAGE, (name, cursor, len(page.items))
        figures[name] = {"page_1_ms": statistics.median(first), "page_1000_ms": statistics.median(thousandth)}
    return figures


def main() -> None:
    figures: dict[str, Any] = {"adapters": ADAPTERS, "page": PAGE}
    ratios: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        services.postgres_url() as server,
        services.fresh_database(server) as url,
    ):
        for kind, database in (("sqlite", f"sqlite:///{Path(folder)}/registry.db"), ("postgres", url)):
            with Harness(database) as harness:
                many_adapters.fill(harness, ADAPTERS)
                for name, numbers in measured(harness).items():
                    ratio = numbers["page_1000_ms"] / numbers["page_1_ms"]
                    print(f"{kind:9} {name:7} page 1 {numbers['page_1_ms']:7.1f} ms, page 1,000 "
                          f"{numbers['page_1000_ms']:7.1f} ms, ratio {ratio:.2f}")  # fmt: skip
                    figures |= {f"{kind}_{name}_{figure}": round(value, 2) for figure, value in numbers.items()}
                    ratios[f"{kind}_{name}_page_1000_time_vs_page_1"] = round(ratio, 3)
    ratios["page_1000_time_vs_page_1"] = max(
        ratios["sqlite_all_page_1000_time_vs_page_1"], ratios["postgres_all_page_1000_time_vs_page_1"]
    )
    machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
    print(json.dumps({"bench": "list", "ratios": ratios, "figures": figures, "machine": machine}))


if __name__ == "__main__":
    main()
