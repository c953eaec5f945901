"""`make bench-pages`: the server's time for a web page against that of the REST requests with the same content.

Requests go through the application in this process, in turns; medians. Ratios: time of the page over time of its REST
counterparts together (on SQLite; less is better, the goal is at most 3), bytes of a page over 150,000, and for both
databases time of a page over many adapters to its time over 1,000 (the goal is 1).

    ADAPTER_BENCH_ADAPTERS=100000      over how many adapters the pages of `GROWING` are asked, besides 1,000
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from tests import many_adapters, services
from tests.access.tenants import UnclosedTransport
from tests.harness import URL, Harness
from tests.many_adapters import PUSHED
from tests.web.site import ENGINES, fill

ROUNDS = 25
API = "/api/v1"
ADAPTER = f"{API}/adapters/acme/support"
PAGE_LIMIT_BYTES = 150_000
COUNTERPARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "search": ("/search", (f"{API}/adapters?limit=25",)),
    "adapter": (
        "/adapters/acme/support",
        (ADAPTER, f"{ADAPTER}/versions?limit=20", f"{ADAPTER}/aliases", f"{ADAPTER}/gates",
         f"{ADAPTER}/versions/4/files/README.md"),
    ),
    "version": (
        "/adapters/acme/support/versions/2",
        (f"{ADAPTER}/versions/2", f"{ADAPTER}/versions/2/norms", f"{ADAPTER}/versions/2/attestations",
         f"{ADAPTER}/versions/2/verdicts?engine=vllm==0.33.0&engine=sglang==0.5.23&engine=peft==0.21.2"),
    ),
    "lineage": (
        "/adapters/acme/support/versions/3/lineage",
        (f"{ADAPTER}/versions/3/lineage", f"{ADAPTER}/versions/3/lineage?direction=down"),
    ),
    "alias": (
        "/adapters/acme/support/aliases/prod",
        (f"{ADAPTER}/aliases", f"{ADAPTER}/versions?limit=30", f"{ADAPTER}/history?alias=prod",
         f"{ADAPTER}/versions/4/gates/prod"),
    ),
    "base": ("/bases/tiny-llama", (f"{API}/bases/tiny-llama", f"{API}/adapters?base=tiny-llama&limit=20")),
    "fleet": ("/fleet", (f"{API}/fleet/nodes?limit=20",)),
    "jobs": ("/jobs", (f"{API}/jobs?limit=50",)),
    "proof": ("/audit/7", (f"{API}/audit/events/7/proof", f"{API}/audit/keys")),
    "audit": ("/audit", (f"{API}/events?limit=60",)),
    "namespace": (
        "/namespaces/acme",
        (f"{API}/adapters?namespace=acme&limit=50", f"{API}/namespaces/acme/gates", f"{ADAPTER}/versions/4/gates/prod",
         f"{ADAPTER}/versions/4/gates/canary"),
    ),
    "settings": ("/settings", (f"{API}/namespaces?limit=50",)),
    "members": (
        "/settings/namespaces/acme",
        (f"{API}/namespaces/acme", f"{API}/adapters?namespace=acme&limit=50", f"{API}/namespaces/acme/retention"),
    ),
    "tokens": ("/settings/tokens", (f"{API}/tokens?limit=50",)),
    "webhooks": ("/settings/webhooks", (f"{API}/webhooks",)),
}  # fmt: skip
"""Page → its path, and the requests that a program would send for the same."""


GROWING = {
    "search": "/search",
    "word_of_all": "/search?text=shop", "word_of_one": "/search?text=quokka", "prefix_of_all": "/search?text=sho",
    "prefix_of_one": "/search?text=quo", "base_of_one": "/search?base=rare-llama", "alias_of_one": "/search?alias=rare",
    "check": "/search?check=compat&outcome=pass", "two_of_many": "/search?text=kind3&rank_max=8",
    "adapter": f"/adapters/{PUSHED}", "version": f"/adapters/{PUSHED}/versions/1",
    "lineage": f"/adapters/{PUSHED}/versions/1/lineage", "alias": f"/adapters/{PUSHED}/aliases/main",
    "namespace": "/namespaces/acme", "bases": "/bases", "base": "/bases/tiny-llama", "jobs": "/jobs",
    "status": "/status", "settings": "/settings", "members": "/settings/namespaces/acme",
}  # fmt: skip
"""Page → its path in a registry with many adapters of one namespace and base."""


def seconds_of(call: Callable[[], httpx.Response]) -> float:
    """The time of a request, which must succeed."""
    started = time.perf_counter()
    response = call()
    elapsed = time.perf_counter() - started
    if response.status_code != 200:
        raise RuntimeError(f"{response.request.url}: {response.status_code} {response.text[:200]}")
    return elapsed


def compare(client: httpx.Client, path: str, counterparts: tuple[str, ...]) -> tuple[float, float, int]:
    """Median seconds of a page and of its counterparts, in turns, and the bytes of the page."""
    pages, requests = [], []
    for _ in range(ROUNDS):
        pages.append(seconds_of(lambda: client.get(path)))
        requests.append(sum(seconds_of(lambda part=part: client.get(part)) for part in counterparts))  # type: ignore[misc]
    return statistics.median(pages), statistics.median(requests), len(client.get(path).content)


def seconds_in_turns(clients: Sequence[httpx.Client], path: str) -> list[float]:
    """The median time of a page for each of these clients, which are asked in turns."""
    seconds: list[list[float]] = [[] for _ in clients]
    for _ in range(ROUNDS + 2):
        for client, times in zip(clients, seconds, strict=True):
            times.append(seconds_of(lambda client=client: client.get(path)))  # type: ignore[misc]
    return [statistics.median(times[2:]) for times in seconds]  # the first ones fill caches


def measure_growth(database: str, many: int) -> tuple[dict[str, float], dict[str, float]]:
    """Ratios and milliseconds of the pages over 1,000 and over many adapters."""
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        if database == "sqlite":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            urls = [f"sqlite:///{folder}/{name}.db" for name in ("few", "many")]
        else:
            server = stack.enter_context(services.postgres_url())
            urls = [stack.enter_context(services.fresh_database(server)) for _ in range(2)]
        clients = []
        for url, adapters in zip(urls, (1000, many), strict=True):
            harness = stack.enter_context(Harness(url, engines=ENGINES))
            many_adapters.fill(harness, adapters)
            clients.append(stack.enter_context(client_of(harness)))
        for name, path in GROWING.items():
            few_ms, many_ms = (1000 * seconds for seconds in seconds_in_turns(clients, path))
            ratios[f"{database}_{name}_page_time_{many}_vs_1000_adapters"] = round(many_ms / few_ms, 3)
            figures |= {
                f"{database}_{name}_1000_ms": round(few_ms, 2),
                f"{database}_{name}_{many}_ms": round(many_ms, 2),
            }
            print(f"{database:8} {name:13} over 1,000 adapters {few_ms:6.1f} ms, over {many:,} {many_ms:6.1f} ms, "
                  f"ratio {many_ms / few_ms:.2f}", flush=True)  # fmt: skip
    return ratios, figures


def client_of(harness: Harness) -> httpx.Client:
    """A client with the administrator's token."""
    headers = {"Authorization": f"Bearer {harness.secret}"}
    return httpx.Client(transport=UnclosedTransport(harness), base_url=URL, headers=headers)


def main() -> None:
    """Measure, print a line for each page, and the JSON object."""
    figures: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, Harness(f"sqlite:///{Path(folder)}/r.db", engines=ENGINES) as harness:
        fill(harness)
        with client_of(harness) as client:
            for name, (path, counterparts) in COUNTERPARTS.items():
                page, rest, size_bytes = compare(client, path, counterparts)
                ratios[f"{name}_page_time_vs_rest"] = round(page / rest, 3)
                ratios[f"{name}_page_bytes_vs_limit"] = round(size_bytes / PAGE_LIMIT_BYTES, 3)
                figures |= {f"{name}_page_ms": round(1000 * page, 2), f"{name}_rest_ms": round(1000 * rest, 2)}
                print(f"{name:8} page {1000 * page:6.1f} ms, REST {1000 * rest:6.1f} ms, ratio {page / rest:.2f}, "
                      f"{size_bytes / 1000:.0f} kB")  # fmt: skip
    many = int(os.environ.get("ADAPTER_BENCH_ADAPTERS") or 100_000)
    for database in ("sqlite", "postgres"):
        more_ratios, more_figures = measure_growth(database, many)
        ratios |= more_ratios
        figures |= more_figures
    machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
    print(json.dumps({"bench": "pages", "ratios": ratios, "figures": figures, "machine": machine}))


if __name__ == "__main__":
    main()
