"""The worker's loop against a real registry: what is claimed, what is reported, and what a lost lease leaves."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from registry.api.access import NamespaceSet
from registry.api.bases import BaseAdd
from registry.api.jobs import JobSubmit
from registry.client.local.base_folder import base_spec_from
from registry.errors import Corrupt, Invalid, Unavailable
from registry.evaluation.reports import Report
from registry.evaluation.verdicts import Check, Outcome
from registry.jobs import Kind, State
from registry.worker.loop import NO_BASE, Worker
from registry.worker.model.sources import Sources
from registry.worker.model_process.client import ModelProcess, Pool, ProcessLimits
from registry.worker.sandbox import namespaces
from registry.worker.task import Done, Failed, Task
from tests.harness import Harness
from tests.worker import models
from tests.worker.setup import BASE, WorkerSetup

Make = Callable[..., Worker]


def test_a_pushed_adapter_is_proven_on_its_base(setup: WorkerSetup, good: Path, worker: Make) -> None:
    job_id = setup.push(good).job_id
    assert worker().run(once=True).done == 1
    verdict = setup.smoke()
    assert verdict is not None
    assert verdict.outcome is Outcome.PASS
    assert setup.harness.admin.job(job_id).result["message"].startswith("smoke: pass (logits move by up to ")
    assert verdict.report is not None
    report = setup.harness.admin.report("acme/support", verdict.report)
    assert (report.measurements["base_loads"] or 0) >= 1
    assert (report.measurements["max_logit_delta"] or 0) > 1e-3
    assert (report.measurements["cpu_seconds"] or 0) > 0
    assert "limits" in report.execution.confined_by
    assert set(report.made_by) == {"worker", "torch", "transformers", "peft", "python"}


def test_an_adapter_that_does_not_fit_never_reaches_the_model(
    setup: WorkerSetup, base_folder: Path, worker: Make, tmp_path: Path
) -> None:
    """The names that may reach a model are those that the header check allows, regardless of who requested the test."""
    setup.push(models.adapter(base_folder, tmp_path / "p", change=models.poisoned))
    setup.harness.admin.submit(JobSubmit(kind="smoke-test", ref="acme/support"))
    assert worker().run(once=True).done == 1
    verdict = setup.smoke()
    assert verdict is not None
    assert verdict.made_by == {}, "a process had a part in it"
    assert {"smoke.incompatible", "compat.overwrites_base"} <= {finding.code for finding in verdict.findings}


def test_a_child_that_never_ends_costs_three_attempts_and_the_verdict_is_unknown(
    setup: WorkerSetup, good: Path, worker: Make, pool: Pool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It waits for a writer of its configuration, and nobody ever comes."""
    monkeypatch.setattr("registry.jobs.BACKOFF_SECONDS", (0,))
    for path in good.iterdir():
        os.mkfifo(tmp_path / path.name)
    job_id = setup.push(good).job_id
    loads, whole = pool.base_loads + ("tiny" not in pool.warm), pool.try_adapter
    monkeypatch.setattr(pool, "try_adapter", lambda source, _, limits, **how: whole(source, tmp_path, limits, **how))
    tally = worker(limits=ProcessLimits(deadline_seconds=0.1, threads=1)).run(once=True)
    job = setup.harness.admin.job(job_id)
    assert (tally.failed, tally.done, job.state, job.attempt, tally.base_loads) == (2, 1, State.DONE, 3, loads)
    verdict = setup.smoke()
    assert verdict is not None
    assert (verdict.outcome, verdict.findings[0].code) == (Outcome.UNKNOWN, "smoke.not_finished")
    assert "deadline of 0.1 seconds" in verdict.summary


def test_an_adapter_for_which_the_memory_does_not_suffice_gets_a_verdict_at_once_and_the_next_one_is_right(
    setup: WorkerSetup, good: Path, base_folder: Path, worker: Make, tmp_path: Path
) -> None:
    large = models.adapter(base_folder, tmp_path / "large", r=512, target_modules="all-linear")
    job_id = setup.push(large, "acme/large").job_id
    tally = worker(limits=ProcessLimits(deadline_seconds=120, threads=1, memory_bytes=2**19)).run(once=True)
    job, verdict = setup.harness.admin.job(job_id), setup.smoke("acme/large")
    assert (tally.failed, job.state, job.attempt) == (0, State.DONE, 1)
    assert verdict is not None
    assert (verdict.outcome, verdict.findings[0].code) == (Outcome.UNKNOWN, "smoke.limit_exceeded")
    assert "out of memory" in verdict.summary
    setup.push(good, "acme/next")
    assert worker().run(once=True).done == 1
    assert (next_one := setup.smoke("acme/next")) is not None
    assert next_one.outcome is Outcome.PASS


@pytest.mark.security
def test_texts_of_a_job_reach_the_registry_bounded_and_printable(
    setup: WorkerSetup, good: Path, worker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = "\x1b]52;c;AAAA\x07\x00\ud800\u202e\n"

    def fail(task: Task) -> Done:
        task.lease.say(hostile * 1000)
        raise Failed(hostile * 1000, final=True)

    job_id = setup.push(good).job_id
    monkeypatch.setattr("registry.worker.loop.RUNNERS", {Kind.SMOKE_TEST: fail})
    assert worker().run(once=True).failed == 1
    job = setup.harness.admin.job(job_id)
    assert job.state is State.FAILED
    for text in (job.error, job.progress, *(step.message for step in job.steps)):
        assert text.isprintable()
    assert 1000 < len(job.error) <= 4000

    def finish(task: Task) -> Done:
        base = task.base
        report = Report(
            check=Check.SMOKE, subject=task.subject.digest, base=base.name, base_fingerprint=str(base.fingerprint)
        )
        return Done(hostile * 1000, report)

    job_id = setup.harness.admin.submit(JobSubmit(kind="smoke-test", ref="acme/support")).id
    monkeypatch.setattr("registry.worker.loop.RUNNERS", {Kind.SMOKE_TEST: finish})
    assert worker().run(once=True).done == 1
    message = setup.harness.admin.job(job_id).result["message"]
    assert message.isprintable()
    assert 1000 < len(message) <= 2000


@pytest.mark.security
def test_a_report_beyond_the_quota_costs_one_attempt(
    setup: WorkerSetup, good: Path, monkeypatch: pytest.MonkeyPatch, pool: Pool
) -> None:
    """The next attempt would take the GPU as long, and its report would be as large."""
    job_id = setup.push(good).job_id
    used = setup.harness.admin.namespace("acme").used_bytes
    setup.harness.admin.change_namespace("acme", NamespaceSet(quota_bytes=used + 1))

    def finish(task: Task) -> Done:
        fingerprint = str(task.base.fingerprint)
        report = Report(check=Check.SMOKE, subject=task.subject.digest, base=BASE, base_fingerprint=fingerprint)
        return Done("smoke: pass", report)

    monkeypatch.setattr("registry.worker.loop.RUNNERS", {Kind.SMOKE_TEST: finish})
    registry = setup.harness.actor("work", "pull", namespaces=["acme"])
    summary = Worker(registry, Sources(), say=setup.lines.append, limits=ProcessLimits(), pool=pool).run(once=True)
    job = setup.harness.admin.job(job_id)
    assert (summary.failed, job.state, job.attempt) == (1, State.FAILED, 1)
    assert "the quota of namespace 'acme' is full" in job.error


def test_a_cancelled_job_is_dropped_and_files_nothing(
    setup: WorkerSetup, good: Path, worker: Make, frozen: Frozen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.worker.task.RENEWALS_PER_LEASE", 100)
    job_id = setup.push(good).job_id
    frozen.then = lambda: setup.harness.admin.cancel(job_id)
    tally = worker().run(once=True)
    assert (tally.done, tally.failed) == (0, 0)
    assert setup.smoke() is None
    assert setup.harness.admin.job(job_id).state is State.CANCELLED
    assert "the lease is lost" in setup.lines[-1]


def test_a_stopping_worker_returns_its_job(setup: WorkerSetup, good: Path, worker: Make, frozen: Frozen) -> None:
    job_id = setup.push(good).job_id
    stopping = worker(grace_seconds=0.1)
    frozen.then = stopping.stop
    stopping.run()
    job = setup.harness.admin.job(job_id)
    assert (job.state, job.error) == (State.QUEUED, "the child was killed: the worker stopped the job")


def test_a_killed_model_process_fails_the_attempt_and_the_next_job_is_right(
    setup: WorkerSetup, good: Path, base_folder: Path, worker: Make, frozen: Frozen, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("registry.jobs.BACKOFF_SECONDS", (0,))
    loads = frozen.pool.base_loads + ("tiny" not in frozen.pool.warm) + 1
    setup.push(good, "acme/one")
    setup.push(models.adapter(base_folder, tmp_path / "other", seed=7), "acme/two")
    frozen.then = lambda: os.kill(frozen.process_pid, signal.SIGKILL)
    tally = worker().run(once=True)
    assert (tally.done, tally.failed, tally.base_loads) == (2, 1, loads)
    assert {v.outcome for name in ("one", "two") if (v := setup.smoke(f"acme/{name}"))} == {"pass"}


def test_a_run_with_once_waits_for_the_retries_of_its_own_failed_jobs(
    setup: WorkerSetup, good: Path, worker: Make, frozen: Frozen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.jobs.BACKOFF_SECONDS", (1,))
    setup.push(good)
    frozen.then = lambda: os.kill(frozen.process_pid, signal.SIGKILL)
    summary = worker().run(once=True)
    assert (summary.done, summary.failed, summary.unfinished) == (1, 1, 0)


def test_a_model_process_that_dies_in_every_attempt_leaves_a_verdict(
    setup: WorkerSetup, good: Path, worker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.jobs.BACKOFF_SECONDS", (0,))
    job_id = setup.push(good).job_id
    whole = ModelProcess.try_adapter

    def die_and_try(process: ModelProcess, *arguments: Any, **options: Any) -> dict[str, Any]:
        os.kill(process.pid, signal.SIGKILL)
        return whole(process, *arguments, **options)

    monkeypatch.setattr(ModelProcess, "try_adapter", die_and_try)
    summary = worker().run(once=True)
    assert (summary.done, summary.failed, summary.unfinished) == (1, 2, 0)
    assert setup.harness.admin.job(job_id).state is State.DONE
    verdict = setup.smoke()
    assert verdict is not None
    assert (verdict.outcome, [finding.code for finding in verdict.findings]) == (
        Outcome.UNKNOWN, ["smoke.not_finished"],
    )  # fmt: skip
    assert "none of 3 attempts ended with a result" in verdict.summary


@pytest.mark.usefixtures("good")
def test_a_worker_without_a_base_says_once_what_it_can_do(harness: Harness) -> None:
    lines: list[str] = []
    with Worker(harness.actor("work"), Sources(), say=lines.append) as worker:
        worker.run(once=True)
        worker.run(once=True)
    assert lines == [NO_BASE]
    assert "--base NAME=DIR" in NO_BASE


def test_a_worker_says_once_that_the_registry_is_away_and_once_that_it_is_back(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    registry = harness.actor("work")
    with Worker(registry, Sources(), say=lines.append, warn=lambda text: lines.append(f"WARNING {text}")) as worker:
        rounds = 0
        errors_of_rounds = {
            2: Unavailable("STORE_UNAVAILABLE", "the database is away"),
            3: Corrupt("RESPONSE_INVALID", "the list is over the limit"),  # another tenant's bases may be the cause
        }

        def claim(_request: object) -> None:
            nonlocal rounds
            rounds += 1
            if rounds in errors_of_rounds:
                raise errors_of_rounds[rounds]
            if rounds > 4:
                worker.stop()

        monkeypatch.setattr("registry.worker.loop.IDLE_SECONDS", (0.0, 0.0))
        monkeypatch.setattr(registry, "claim", claim)
        worker.run()
    assert lines == [
        NO_BASE, "WARNING waiting for the registry: the database is away", "WARNING the registry responds again",
    ]  # fmt: skip


def test_only_jobs_of_bases_that_are_here_are_claimed(setup: WorkerSetup, worker: Make, tmp_path: Path) -> None:
    elsewhere = models.base(tmp_path / "elsewhere", hidden=128)
    setup.add_base("elsewhere", elsewhere, source="/nowhere/elsewhere")
    setup.push(models.adapter(elsewhere, tmp_path / "adapter"), "acme/far", base="elsewhere")
    assert worker().run(once=True).done == 0
    assert setup.smoke("acme/far") is None
    assert "name its folder: --base elsewhere=DIR" in setup.lines[0]
    assert worker(Sources({"elsewhere": elsewhere})).run(once=True).done == 1


CHILD_LIMIT_SECONDS = 120


class Frozen:
    """The warm pool, whose next child is stopped (SIGSTOP) as soon as it exists; then `then` is called, once."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.then: Callable[[], object] = lambda: None
        self.process_pid = 0
        self._whole = pool.try_adapter

    def try_adapter(self, source, folder, limits, **how):  # type: ignore[no-untyped-def]
        if self.process_pid:
            return self._whole(source, folder, limits, **how)
        process = self.pool.process(source)
        self.process_pid = process.pid
        thread = threading.Thread(target=self._freeze, args=[process])
        thread.start()
        try:
            return self._whole(source, folder, replace(limits, isolate=True), **how)  # slow enough to be caught
        finally:
            thread.join()

    def _freeze(self, process) -> None:  # type: ignore[no-untyped-def]
        ends = time.monotonic() + CHILD_LIMIT_SECONDS
        while not (child := process.child):
            assert time.monotonic() < ends, "no child was started"
        os.kill(child, signal.SIGSTOP)
        self.then()


@pytest.fixture
def frozen(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Frozen:
    if namespaces.bubblewrap():
        pytest.skip("bubblewrap hides the process number of the child that would be stopped")
    frozen = Frozen(pool)
    monkeypatch.setattr(pool, "try_adapter", frozen.try_adapter)
    return frozen


def test_a_folder_whose_weights_were_exchanged_is_refused_with_the_match(
    setup: WorkerSetup, good: Path, base_folder: Path, worker: Make, tmp_path: Path
) -> None:
    setup.push(good)
    unrelated = models.base(tmp_path / "unrelated", seed=5)
    with pytest.raises(Invalid, match="the weights differ; the folder has unrelated weights"):
        worker(Sources({"tiny": unrelated})).run(once=True)
    cast = tmp_path / "cast"
    transformers.LlamaForCausalLM.from_pretrained(base_folder).to(torch.bfloat16).save_pretrained(cast)
    with pytest.raises(Invalid, match="its match is 'other-dtype'"):
        worker(Sources({"tiny": cast})).run(once=True)
    assert setup.smoke() is None


def test_the_first_worker_that_uses_a_base_tells_which_weights_it_has(
    harness: Harness, setup: WorkerSetup, base_folder: Path, worker: Make
) -> None:
    spec, _ = base_spec_from(base_folder, "copy")
    harness.admin.add_base(BaseAdd(spec=spec, source=str(base_folder)))
    assert worker().run(once=True).done == 0
    base = harness.admin.base("copy")
    assert base.spec.fingerprints.exact == harness.admin.base("tiny").spec.fingerprints.exact
    assert [(relative.other, relative.match) for relative in base.relatives] == [("tiny", "exact")]
    assert [line.partition(" once")[0] for line in setup.lines] == [
        "reading the weights of copy",
        f"building copy with transformers {transformers.__version__}",
    ]


@pytest.mark.parametrize("moment", ["while it loads", "between two attempts"])
def test_weights_that_are_exchanged_after_they_were_identified_get_no_verdict(
    moment: str, setup: WorkerSetup, good: Path, base_folder: Path, worker: Make, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("registry.jobs.BACKOFF_SECONDS", (0,))
    folder = shutil.copytree(base_folder, tmp_path / "copy")
    other = models.base(tmp_path / "other", seed=5) / "model.safetensors"
    setup.harness.admin.add_base(BaseAdd(spec=base_spec_from(folder, "copy")[0], source=str(folder)))
    setup.push(good, base="copy")
    load = ModelProcess.load

    def load_others(process: ModelProcess) -> ModelProcess:
        os.replace(other, folder / "model.safetensors")
        if moment == "between two attempts":
            process.kill()
        return load(process)

    monkeypatch.setattr(ModelProcess, "load", load_others)
    summary = worker(Sources({"copy": folder})).run(once=True)
    assert (summary.done, summary.failed, summary.unfinished) == (0, 1, 1), setup.lines
    assert setup.smoke() is None
    assert any("changed meanwhile" in line for line in setup.lines) is (moment == "while it loads")
    assert f"{folder} is not the base copy: " in setup.lines[-1]
