"""`adapter worker --once`: its summary and its exit code."""

from __future__ import annotations

import pytest

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
