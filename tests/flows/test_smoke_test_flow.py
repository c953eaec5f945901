"""The flow of a smoke test: push, claim, pull, try on the base, report; and the gate that reads the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.errors import Refused
from registry.jobs import State
from registry.worker.loop import Worker
from registry.worker.model.sources import Sources
from registry.worker.model_process.client import Pool, ProcessLimits
from tests.harness import Harness
from tests.worker import models
from tests.worker.setup import WorkerSetup

NAME = "acme/support"


@pytest.fixture(scope="module")
def loads(pool: Pool) -> int:
    """How often a base must have been loaded at the end of this file."""
    return pool.base_loads + ("tiny" not in pool.warm)


@pytest.mark.usefixtures("loads")
def test_the_gate_of_prod_opens_for_an_adapter_that_passes_smoke(
    harness: Harness, base_folder: Path, pool: Pool, tmp_path: Path
) -> None:
    setup = WorkerSetup(harness, base_folder)
    pushed = setup.push(models.adapter(base_folder, tmp_path / "good"), NAME)
    assert harness.admin.job(pushed.job_id).state is State.QUEUED
    with pytest.raises(Refused) as refused:
        harness.admin.promote(NAME, "prod", "1", generation=0)
    assert "no verdict for the check 'smoke' yet" in str(refused.value.findings or refused.value)

    assert _work(setup, pool) == 1

    job = harness.admin.job(pushed.job_id)
    assert (job.state, job.worker, job.attempt) == (State.DONE, "gpu-1", 1)
    assert harness.admin.resolve(NAME).verdicts == {"compat": "pass", "weights": "pass", "smoke": "pass"}
    assert harness.admin.promote(NAME, "prod", "1", generation=0).number == 1
    evidence = harness.admin.history(NAME, alias="prod").moves[0].evidence
    assert {"compat", "smoke"} <= {verdict["check"] for verdict in evidence}


def test_the_gate_of_prod_stays_closed_for_nan_without_a_smoke_test(
    harness: Harness, base_folder: Path, pool: Pool, tmp_path: Path
) -> None:
    setup = WorkerSetup(harness, base_folder)
    setup.push(models.adapter(base_folder, tmp_path / "nan", change=models.with_nan), NAME)

    assert _work(setup, pool) == 0

    assert harness.admin.resolve(NAME).verdicts == {"compat": "pass", "weights": "fail"}
    with pytest.raises(Refused) as refused:
        harness.admin.promote(NAME, "prod", "1", generation=0)
    assert refused.value.code == "GATE_CLOSED"
    assert "NaN or infinite values" in str([reason.message for reason in refused.value.findings])


def test_all_tests_of_this_file_load_the_base_once(pool: Pool, loads: int) -> None:
    assert pool.base_loads == loads


def _work(setup: WorkerSetup, pool: Pool) -> int:
    registry = setup.harness.actor("work", "pull", name="gpu-1")
    worker = Worker(
        registry, Sources(), say=setup.lines.append, pool=pool, name="gpu-1",
        limits=ProcessLimits(deadline_seconds=120, threads=1),
    )  # fmt: skip
    return worker.run(once=True).done
