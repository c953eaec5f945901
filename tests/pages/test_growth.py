"""No page, and no REST request with the same content, does more work in the database for many adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from registry.api.serving import NodeReport, SlotReport, SlotState
from registry.server.catalog.search import adapters, candidates
from registry.server.http import metrics
from registry.server.push import readable_blobs
from tests import many_adapters
from tests.access.tenants import send
from tests.harness import Harness
from tests.many_adapters import PUSHED, RARE
from tests.pages.conftest import ENGINES

FEW, MANY = 160, 3200
STEPS = 20
API = "/api/v1"
SEARCHES = (
    "", "text=shop", "text=acme+shop", "text=quokka", "text=quok", "text=kind3", "base=tiny-llama", "base=rare-llama",
    "alias=rare", "alias=main", "owner=rare-owner", "owner=token:admin", "method=loha", "method=lora", "rank_max=4",
    "rank_min=8", "namespace=acme", "check=compat&outcome=pass", "check=compat&outcome=warn",
    "check=weights&outcome=unknown", "check=smoke", "base=tiny-llama&method=loha", "base=tiny-llama&text=kind3",
    "text=kind3&rank_max=8",
)  # fmt: skip
MORE_SEARCHES = (
    "tag=tier%3Drare", "prefix=acme/zz", "prefix=acme/a-", "prefix=ac", "annotation=parity%3Dodd&rank_max=8",
    "annotation=parity%3Dodd&annotation=tier%3Dgold&rank_max=8",
)  # fmt: skip
PATHS = (
    *(f"/search?{search}" for search in SEARCHES),
    *(f"{API}/adapters?limit=25&{search}" for search in (*SEARCHES, *MORE_SEARCHES) if "check=" not in search),
    f"/adapters/{PUSHED}", f"/adapters/{PUSHED}/versions/1", f"/adapters/{PUSHED}/versions/1/lineage",
    f"/adapters/{RARE}/aliases/rare", f"/compare?first={PUSHED}@1&second={RARE}@1",
    "/namespaces/acme", "/bases", "/bases/tiny-llama", "/bases/rare-llama", "/fleet", "/fleet/gpu", "/jobs",
    f"/jobs?ref={RARE}", "/jobs?state=failed", "/audit", "/audit?view=past-gates", f"/audit?object={RARE}",
    "/settings", "/settings/namespaces/acme",
    f"/settings/adapters/{PUSHED}", "/settings/tokens", "/settings/tokens/own", "/settings/webhooks", "/status",
    f"{API}/metrics",
    f"{API}/bases/tiny-llama/adapters?alias=main&limit=25", f"{API}/bases/tiny-llama",
    f"{API}/engine-settings?base=tiny-llama&engine=vllm==0.33.0", f"{API}/bases",
    f"{API}/namespaces", f"{API}/jobs?limit=50", f"{API}/jobs?ref={RARE}",
)  # fmt: skip


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Harness]]:
    """One with few adapters and one with many."""
    folder: Path = tmp_path_factory.mktemp("growth")
    databases = [Harness(f"sqlite:///{folder}/{name}.db", engines=ENGINES) for name in ("few", "many")]
    with databases[0] as few, databases[1] as many:
        for harness, adapters in ((few, FEW), (many, MANY)):
            many_adapters.fill(harness, adapters)
            report_node(harness)
        yield [few, many]


def report_node(harness: Harness) -> None:
    """A node that loads on demand whatever `main` points at."""
    version = harness.admin.version(PUSHED)
    slot = SlotReport(adapter=PUSHED, digest=version.digest, served_name=PUSHED, state=SlotState.SERVING)
    harness.admin.report_node("gpu", "vllm", NodeReport(base="tiny-llama", alias="main", on_demand=True, slots=[slot]))


@contextmanager
def counting(harness: Harness) -> Iterator[Callable[[], int]]:
    """Count the steps of SQLite's virtual machine, in units of `STEPS`."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    def watch(connection: Any, *_: Any) -> None:
        connection.set_progress_handler(step, STEPS)

    def unwatch(connection: Any, *_: Any) -> None:
        connection.set_progress_handler(None, 0)

    event.listen(harness.engine, "checkout", watch)
    event.listen(harness.engine, "checkin", unwatch)
    try:
        yield lambda: count
    finally:
        event.remove(harness.engine, "checkout", watch)
        event.remove(harness.engine, "checkin", unwatch)


def test_no_push_works_harder_where_many_versions_share_its_files(
    registries: list[Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For who sees those versions, and for another tenant, who has to send the bytes."""
    monkeypatch.setattr(readable_blobs, "READERS_LIMIT", FEW // 8)
    steps: dict[str, list[int]] = {}
    for harness in registries:
        for namespace in ("acme", "globex"):
            registry = harness.actor("push", "pull", namespaces=[namespace])
            for number in range(2):  # the second without what a process reads once
                harness.transport.settle()
                with counting(harness) as count:
                    harness.push(f"{namespace}/new-{number}", {**harness.files(), **_readme(number)}, by=registry)
                    harness.transport.settle()
                    worked = count()
            steps.setdefault(namespace, []).append(worked)
    assert {name: (few, many) for name, (few, many) in steps.items() if many > 2 * few + 50} == {}


def _readme(number: int) -> dict[str, bytes]:
    return {"README.md": f"# {number}\n".encode()}


def work(harness: Harness, path: str) -> int:
    """The work of a request, without what a process reads once."""
    for _ in range(2):
        harness.transport.settle()
        with counting(harness) as count:
            response = send(harness, "GET", path, harness.secret)
            assert response.status_code == 200, (path, response.text[:300])
            harness.transport.settle()
            steps = count()
    return steps


def test_no_page_works_harder_for_many_adapters(registries: list[Harness], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "CANDIDATES_LIMIT", FEW // 8)
    monkeypatch.setattr(candidates, "MORE_CANDIDATES_LIMIT", FEW // 8)
    monkeypatch.setattr(adapters, "WINDOW", FEW // 2)
    monkeypatch.setattr(adapters, "WIDE_WINDOW", FEW)
    monkeypatch.setattr(metrics, "COUNT_LIMIT", FEW // 2)
    steps = {path: [work(harness, path) for harness in registries] for path in PATHS}
    growing = {path: (few, many) for path, (few, many) in steps.items() if many > 2 * few + 50}
    assert growing == {}
