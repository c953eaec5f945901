"""Workers on a local Ray cluster of several nodes: bases are spread, and a node that is killed loses no job.

Run by `make test-ray`; without Ray, or in the ordinary run, these are skipped and counted.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from registry.evaluation.verdicts import Outcome
from registry.jobs import State
from registry.worker.model_process.client import ProcessLimits
from tests import processes
from tests.harness import Harness
from tests.worker import models
from tests.worker.setup import WorkerSetup

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not os.environ.get("ADAPTER_TEST_RAY"), reason="a tier of its own: make test-ray"),
]
ray: Any = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[cluster]'")
PATIENCE_SECONDS = 300


@pytest.fixture
def served(harness: Harness) -> Iterator[str]:
    """The registry of the test over HTTP, for processes elsewhere."""
    port = processes.free_port()
    server = uvicorn.Server(uvicorn.Config(harness.app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A head without CPUs, and two nodes with one CPU each."""
    from ray.cluster_utils import Cluster

    cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 0}))
    for _ in range(2):
        _patiently(lambda: cluster.add_node(num_cpus=1))
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", namespace="adapter-registry")
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def _patiently(start: Callable[[], Any], tries: int = 4) -> Any:
    """Ray gives a node 15 seconds to start its agent, come what may: on a busy machine the next one may do it."""
    try:
        return start()
    except Exception:
        if tries == 1:
            raise
        return _patiently(start, tries - 1)


def test_a_campaign_is_spread_and_a_killed_node_loses_no_job(
    harness: Harness, served: str, nodes: Any, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from registry.worker.cluster import Cluster, ClusterPlan

    monkeypatch.setattr("registry.jobs.JOB_LEASE_SECONDS", 5)
    monkeypatch.setattr("registry.jobs.BACKOFF_SECONDS", (0,))
    setup = WorkerSetup(harness, base_folder)
    other = models.base(tmp_path / "other", hidden=128)
    setup.add_base("other", other)
    names = [f"acme/{base}-{i}" for base in ("tiny", "other") for i in range(4)]
    for i, name in enumerate(names):
        base = "other" if "other" in name else "tiny"
        folder = other if base == "other" else base_folder
        setup.push(models.adapter(folder, tmp_path / str(i), seed=i), name, base=base)
    _, secret = harness.issue("work", "pull", name="cluster")
    plan = ClusterPlan(
        served, secret, {"tiny": None, "other": None}, limits=ProcessLimits(deadline_seconds=120, threads=1)
    )
    lines: list[str] = []
    with Cluster(nodes.address, plan, say=lines.append) as cluster:
        working = threading.Thread(target=cluster.run, daemon=True)
        working.start()
        places = {ray.get(actor.where.remote(), timeout=PATIENCE_SECONDS)[0] for actor in cluster.actors}
        assert len(places) == 2, "both workers are on one node"
        _wait_until(lambda: len(_done(harness)) >= 1)
        victim = next(node for node in nodes.worker_nodes if node.node_id in places)
        nodes.remove_node(victim, allow_graceful=False)
        _patiently(lambda: nodes.add_node(num_cpus=1))
        _wait_until(lambda: len(_done(harness)) == len(names))
        cluster.stop()
        working.join(PATIENCE_SECONDS)
    assert not harness.admin.jobs(state=State.FAILED).items
    verdicts = [setup.smoke(name) for name in names]
    assert {v.outcome for v in verdicts if v is not None} == {Outcome.PASS}
    assert len(verdicts) == len(names)


def _done(harness: Harness) -> list[Any]:
    return harness.admin.jobs(state=State.DONE).items


def _wait_until(true: Any) -> None:
    ends = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < ends, "it did not come true in time"
        time.sleep(0.5)
