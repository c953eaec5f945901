"""No command that promises a verdict ends before the verdict exists, for weights of any size."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from tests import samples
from tests.cli.runner import CommandRunner

pytestmark = pytest.mark.security


@pytest.fixture
def large(cli: CommandRunner, monkeypatch: pytest.MonkeyPatch) -> CommandRunner:
    """All weights count as large, so a push ends before their numbers are read."""
    monkeypatch.setattr("registry.server.push.inspect.INLINE_BYTES", 0)
    monkeypatch.setattr("registry.server.promotion.move_decisions.PENDING_RETRY_SECONDS", 0)
    monkeypatch.setattr("registry.client.transport.retries.PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("registry.client.waiting.POLL_SECONDS", 0.01)
    cli.add_base()
    return cli


@pytest.fixture
def pending(large: CommandRunner, monkeypatch: pytest.MonkeyPatch) -> CommandRunner:
    """The server never comes to read the numbers."""
    monkeypatch.setattr("registry.server.evaluation.weights.has_unmeasured", lambda _engine: False)
    monkeypatch.setattr("registry.client.waiting.PENDING_SECONDS", 0.05)
    return large


def adapter(cli: CommandRunner, name: str, value: float = 0.25) -> Path:
    def change(tensors: dict[str, samples.Tensor]) -> dict[str, samples.Tensor]:
        first = next(iter(tensors))
        dtype, shape, _ = tensors[first]
        return tensors | {first: (dtype, shape, samples.constant(dtype, shape, value))}

    return cli.make_adapter(name, change=change)


def outcomes(version: dict[str, list[dict[str, str]]]) -> dict[str, str]:
    return {verdict["check"]: verdict["outcome"] for verdict in version["verdicts"]}


def test_strict_waits_for_the_verdict_on_large_weights(large: CommandRunner) -> None:
    good = large("push", adapter(large, "good"), "acme/good", "--strict", "--json").json
    assert outcomes(good["version"])["weights"] == "pass"
    broken = large("push", adapter(large, "broken", math.nan), "acme/broken", "--strict", "--json", expect=6).json
    assert outcomes(broken["version"])["weights"] == "fail"
    items = large("push-all", large.folder / "adapters", "globex", "--strict", "--json", expect=6).json["items"]
    assert [outcomes(item["pushed"]["version"])["weights"] for item in items] == ["fail", "pass"]


def test_an_alias_moves_only_once_large_weights_are_read(large: CommandRunner) -> None:
    large("push", adapter(large, "good"), "acme/good", "--alias", "canary")
    assert large("show", "acme/good:canary", "--json").json["number"] == 1
    result = large("push", adapter(large, "broken", math.nan), "acme/good", "--alias", "canary", expect=6)
    assert "The alias did not move" in result.stdout
    assert large("show", "acme/good:canary", "--json").json["number"] == 1


def test_wait_ends_at_the_first_known_fail(large: CommandRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.jobs.wait_for", lambda *_: pytest.fail("no worker can change this verdict"))
    folder = adapter(large, "broken", math.nan)
    result = large("push", folder, "acme/broken", "--wait", "--strict", "--json", expect=6).json
    assert outcomes(result["version"])["weights"] == "fail"


def test_a_verdict_that_does_not_come_is_pending_and_exits_75(pending: CommandRunner) -> None:
    folder = adapter(pending, "broken", math.nan)
    for options in (["--strict"], ["--alias", "canary"], ["--wait"], ["--wait-timeout", "0s"]):
        result = pending("push", folder, "acme/broken", *options, expect=75)
        assert "weights pending" in result.stdout
        assert "still pending" in result.stderr
    assert pending("push", folder, "acme/broken", "--strict", "--json", expect=75).problem["code"] == "TRY_LATER"
    assert pending("promote", "acme/broken", "canary", "--json", expect=75).problem["code"] == "TRY_LATER"
    assert "still pending" in pending("gate", "show", "acme/broken@1", "canary").stdout
    assert "still pending" in pending("check", "acme/broken", expect=75).stderr
    assert (
        "1 with a pending verdict"
        in pending("push-all", pending.folder / "adapters", "globex", "--strict", expect=75).stdout
    )
    pending("push", folder, "acme/broken")


def test_gc_says_whose_weights_it_measured(pending: CommandRunner) -> None:
    pending("push", adapter(pending, "good"), "acme/good")
    assert "1  version measured" in pending("gc").stdout
    assert "Nothing to collect." in pending("gc").stdout


def test_check_reads_the_numbers_of_a_folder_of_any_size(large: CommandRunner) -> None:
    items = large("check", adapter(large, "broken", math.nan), "--json", expect=6).json["items"]
    assert [(item["check"], item["outcome"]) for item in items] == [("compat", "pass"), ("weights", "fail")]
    assert "its weights: pass" in large("check", adapter(large, "good")).stdout


def test_check_without_numpy_says_that_it_read_no_numbers(cli: CommandRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.add_base()
    monkeypatch.setitem(sys.modules, "numpy", None)
    monkeypatch.delitem(sys.modules, "registry.server.evaluation.norms", raising=False)
    result = cli("check", adapter(cli, "broken", math.nan))
    assert "the numbers (NaN, zeros) were not read" in result.stdout
    assert "the push reads them" in result.stderr
