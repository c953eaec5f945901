"""`adapter worker --once`: its summary and its exit code."""

from __future__ import annotations

import json

import pytest

from cli.console.progress import ProgressLine
from registry.errors import Invalid
from registry.worker.loop import RunSummary, Worker
from tests.cli.runner import CommandRunner

pytest.importorskip("peft")


@pytest.mark.parametrize(("remaining", "exit_code"), [(0, 0), (2, 75)])
def test_a_job_that_is_left_for_another_attempt_is_exit_75(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch, remaining: int, exit_code: int
) -> None:
    monkeypatch.setattr(
        Worker, "run", lambda _self, **_options: RunSummary(done=1, failed=remaining, unfinished=remaining)
    )
    result = cli("worker", "--once", expect=exit_code)
    assert ("2 failed jobs left for another attempt" in result.stdout) is bool(remaining)
    assert cli("worker", "--once", "--json", expect=exit_code).json["unfinished"] == remaining
    logged = cli("worker", "--once", expect=exit_code, ADAPTER_LOG="json")
    assert json.loads(logged.stderr)["message"].startswith("stopped: 1 job done")
    assert logged.stdout == ""


@pytest.mark.parametrize("done", [0, 1])
def test_a_worker_that_cannot_go_on_says_what_it_did_and_fails(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    def run(worker: Worker, **_options: bool) -> RunSummary:
        worker.summary.done = done
        raise Invalid("BASE_INVALID", "the folder is not the base")

    monkeypatch.setattr(Worker, "run", run)
    result = cli("worker", "--once", expect=2)
    assert ("1 job done" in result.stdout) is bool(done)
    assert "the folder is not the base" in result.stderr


def test_a_watched_worker_counts_the_jobs_that_are_done_and_queued(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.add_base()
    for name in ("acme/one", "acme/two", "acme/three"):
        cli.push(name)
    lines: list[tuple[int, int]] = []
    monkeypatch.setattr("cli.console.progress.on_terminal", lambda: True)
    monkeypatch.setattr(ProgressLine, "count_items", lambda _self, done, total: lines.append((done, total)))

    def run(worker: Worker, **_options: bool) -> RunSummary:
        worker._say("no base")
        cli.finish_smoke_test("acme/one")
        worker.summary.done = 1
        worker._say("acme/one: passed")
        return worker.summary

    monkeypatch.setattr(Worker, "run", run)
    assert "acme/one: passed" in cli("worker", "--once").stdout
    assert lines == [(1, 3)]
