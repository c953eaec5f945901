"""`push --wait` and `push-all --wait` end with a verdict of the smoke test, of new versions and of those that exist."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli.console import session
from registry.api.jobs import Claimed, ClaimRequest, FailRequest
from registry.client import waiting
from registry.client.registry import Registry
from registry.findings import Finding
from registry.jobs import FINAL
from tests import non_peft_files, samples
from tests.cli.runner import CommandRunner

BROKEN = Finding(code="smoke.no_effect", severity="error", location="logits", message="the logits do not move")
NOW = ("--wait-timeout", "0s")


@pytest.fixture
def pushed(cli: CommandRunner) -> CommandRunner:
    """acme/a and acme/b are pushed from `adapters`, and no worker has tested them."""
    cli.add_base()
    for name in "ab":
        cli.make_adapter(name)
    cli("push-all", folder_of(cli), "acme")
    return cli


def folder_of(cli: CommandRunner, name: str = "") -> Path:
    return cli.folder / "adapters" / name


def jobs(cli: CommandRunner) -> list[tuple[str, str]]:
    return sorted((job["subject"], job["state"]) for job in cli("job", "list", "--json").json["items"])


def smoke(version: Any) -> list[str]:
    return [verdict["outcome"] for verdict in version["verdicts"] if verdict["check"] == "smoke"]


def aliases(cli: CommandRunner, ref: str) -> list[str]:
    return [alias for alias in cli("show", ref, "--json").json["aliases"] if alias != "main"]


def fail_job() -> None:
    with session.embedded(Registry) as registry:
        claimed = registry.claim(ClaimRequest(worker="test"))
        assert claimed is not None
        registry.fail(claimed.job.id, FailRequest(lease_token=claimed.lease.token, error="no memory", final=True))


@pytest.fixture
def between_polls(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Has something happen while a command sleeps between two polls, once; further polls fail the test."""

    def use(work: Callable[[], None]) -> None:
        works = [work]

        def sleep(_seconds: float) -> None:
            assert works, "the command waits on"
            works.pop()()

        clock = SimpleNamespace(sleep=sleep, monotonic=time.monotonic)
        monkeypatch.setattr("registry.client.waiting.time", clock)

    return use


def test_without_a_worker_an_unchanged_push_is_late_and_moves_no_alias(pushed: CommandRunner) -> None:
    result = pushed("push", folder_of(pushed, "a"), "acme/a", *NOW, "--alias", "canary", "--json", expect=75)
    assert (result.json["created"], result.problem["code"]) == (False, "TRY_LATER")
    assert "is still queued" in result.json["alias_refused"]
    assert (aliases(pushed, "acme/a"), jobs(pushed)) == ([], [("acme/a@1", "queued"), ("acme/b@1", "queued")])
    report = pushed("push-all", folder_of(pushed), "acme", *NOW, "--alias", "canary", expect=75)
    assert "the same command continues, once a worker runs" in report.stderr
    shown = report.stdout
    assert shown.splitlines()[-1] == "0 new versions, 2 unchanged, 0 refused; 2 not finished"
    assert (aliases(pushed, "acme/a"), aliases(pushed, "acme/b"), len(jobs(pushed))) == ([], [], 2)


def test_waiting_ends_once_no_worker_takes_a_test(pushed: CommandRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --wait-timeout, too: a CI job would run until its service ends it."""
    monkeypatch.setattr("registry.client.waiting.QUEUED_SECONDS", 0.01)
    folder = str(folder_of(pushed, "a"))
    campaign = ("--all", "--base", "tiny-llama")
    for words in (("push", folder, "acme/a"), ("smoke-test", "acme/a"), ("smoke-test", *campaign)):
        late = pushed(*words, "--wait", "--json", expect=75)
        assert late.problem["code"] == "TRY_LATER", words
    items = pushed("push-all", folder_of(pushed), "acme", "--wait", "--json", expect=75).json["items"]
    assert [item["error"]["code"] for item in items] == ["TRY_LATER", "TRY_LATER"]


def test_push_all_waits_on_for_a_test_that_a_worker_has_had_and_gave_back(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.add_base()
    cli.make_adapter("a")
    monkeypatch.setattr("registry.jobs.BACKOFF_SECONDS", (0,))
    seconds, claims = 0.0, list[Claimed]()

    def take() -> None:
        with session.embedded(Registry) as registry:
            claimed = registry.claim(ClaimRequest(worker="test"))
            assert claimed is not None
            claims.append(claimed)

    def give_back() -> None:
        with session.embedded(Registry) as registry:
            [claimed] = claims
            registry.fail(claimed.job.id, FailRequest(lease_token=claimed.lease.token, error="no memory"))

    works: list[Callable[[], None]] = [take, give_back, lambda: cli.finish_smoke_test("acme/a")]

    def sleep(_seconds: float) -> None:
        nonlocal seconds
        seconds += 100
        works.pop(0)()

    monkeypatch.setattr("registry.client.waiting.time", SimpleNamespace(sleep=sleep, monotonic=lambda: seconds))
    [item] = cli("push-all", folder_of(cli), "acme", "--wait", "--json").json["items"]
    assert smoke(item["pushed"]["version"]) == ["pass"]


def test_waiting_goes_on_behind_a_busy_worker_and_ends_once_it_is_silent(
    pushed: CommandRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a queue of an hour the last test is waited for, of a worker that died none."""
    seconds, ends_after = 0.0, 3600.0

    def sleep(_seconds: float) -> None:
        nonlocal seconds
        seconds += 100
        assert seconds < ends_after + 1000, "the command waits on"
        if seconds == ends_after:
            cancel_jobs()

    def cancel_jobs() -> None:
        with session.embedded(Registry) as registry:
            for job in registry.jobs(ref="acme/a").items:
                if job.state not in FINAL:
                    registry.cancel(job.id)

    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: seconds)
    monkeypatch.setattr("registry.client.waiting.time", clock)
    monkeypatch.setattr("cli.jobs.time", clock)
    monkeypatch.setattr("registry.jobs.JOB_LEASE_SECONDS", 7200)
    for words in (
        ("push", str(folder_of(pushed, "b")), "acme/b"), ("smoke-test", "acme/b"),
        ("smoke-test", "--all", "--base", "tiny-llama"),
    ):  # fmt: skip
        seconds = 0.0
        cancel_jobs()
        pushed("smoke-test", "acme/a", "--priority", "1")
        with session.embedded(Registry) as registry:
            assert registry.claim(ClaimRequest(worker="w")) is not None
        result = pushed(*words, "--wait", expect=75)
        assert ends_after + 500 <= seconds <= ends_after + 700, words
        assert "waiting for a worker" in result.stderr
        if "--all" not in words:
            assert "queued behind 1 job; the workers are busy" in result.stderr, words
    assert "Next: it continues, once a worker runs (`adapter worker`)" in result.stderr


def test_a_limit_of_time_says_that_the_workers_are_busy(pushed: CommandRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.client.waiting.POSITION_SECONDS", 0.0)
    with session.embedded(Registry) as registry:
        assert registry.claim(ClaimRequest(worker="w")) is not None
    problem = pushed("smoke-test", "acme/b", *NOW, "--json", expect=75).problem
    assert problem["detail"].endswith("is still queued, and workers are busy with other jobs")
    assert problem["next_step"].startswith("it continues: `adapter job show job_")


def test_an_unchanged_push_joins_the_test_that_waits(pushed: CommandRunner, between_polls: Any) -> None:
    def finish_both() -> None:
        for ref in ("acme/a", "acme/b"):
            pushed.finish_smoke_test(ref)

    between_polls(finish_both)
    items = pushed("push-all", folder_of(pushed), "acme", "--wait", "--alias", "canary", "--json").json["items"]
    assert [smoke(item["pushed"]["version"]) for item in items] == [["pass"], ["pass"]]
    assert [aliases(pushed, ref) for ref in ("acme/a", "acme/b")] == [["canary"], ["canary"]]
    assert [state for _, state in jobs(pushed)] == ["done", "done"]
    again = pushed("push", folder_of(pushed, "a"), "acme/a", "--wait", "--alias", "stable", "--json").json
    assert (smoke(again["version"]), again["version"]["aliases"]) == (["pass"], ["canary", "main", "stable"])
    assert len(jobs(pushed)) == 2, "the verdict was there"


def test_a_verdict_that_came_since_the_push_is_taken(
    pushed: CommandRunner, between_polls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(*arguments: Any, **options: Any) -> Any:
        pushed.finish_smoke_test("acme/a")
        return request(*arguments, **options)

    request = waiting.request_smoke_test
    monkeypatch.setattr(waiting, "request_smoke_test", finish)
    between_polls(lambda: pytest.fail("the verdict is there"))
    again = pushed("push", folder_of(pushed, "a"), "acme/a", "--wait", "--alias", "canary", "--json").json
    assert (smoke(again["version"]), len(jobs(pushed))) == (["pass"], 2)


def test_after_a_test_that_broke_off_another_one_is_requested(pushed: CommandRunner, between_polls: Any) -> None:
    fail_job()
    between_polls(fail_job)
    result = pushed("push", folder_of(pushed, "b"), "acme/b", "--wait", "--alias", "canary", "--json", expect=75)
    assert "failed: no memory" in result.problem["detail"]
    items = pushed("push-all", folder_of(pushed), "acme", *NOW, "--alias", "canary", "--json", expect=75).json["items"]
    assert [smoke(item["pushed"]["version"]) for item in items] == [[], []]
    assert jobs(pushed) == [
        ("acme/a@1", "failed"), ("acme/a@1", "queued"), ("acme/b@1", "failed"), ("acme/b@1", "queued")
    ]  # fmt: skip
    assert [aliases(pushed, ref) for ref in ("acme/a", "acme/b")] == [[], []]


def test_a_job_that_fails_while_push_all_waits_is_an_error(pushed: CommandRunner, between_polls: Any) -> None:
    def fail_both() -> None:
        fail_job()
        fail_job()

    between_polls(fail_both)
    options = ("--wait", "--alias", "canary", "--json")
    items = pushed("push-all", folder_of(pushed), "acme", *options, expect=75).json["items"]
    assert ["failed: no memory" in item["error"]["detail"] for item in items] == [True, True]
    assert [aliases(pushed, ref) for ref in ("acme/a", "acme/b")] == [[], []]


def test_an_alias_moves_after_the_verdict_and_not_to_what_failed(cli: CommandRunner, between_polls: Any) -> None:
    cli.add_base()

    def finish() -> None:
        with session.embedded(Registry) as registry:
            assert registry.version("acme/a").aliases == ["main"], "the verdict comes first"
        cli.finish_smoke_test("acme/a", BROKEN)

    between_polls(finish)
    words = ("push", cli.make_adapter("a"), "acme/a", "--wait", "--alias", "canary")
    refused = cli(*words, "--json", expect=6).json
    assert (smoke(refused["version"]), aliases(cli, "acme/a")) == (["fail"], [])
    assert refused["alias_refused"] == "the check 'smoke' says fail: the logits do not move"
    item = cli("push-all", folder_of(cli), "acme", "--wait", "--alias", "canary", "--json", expect=6).json["items"][0]
    assert (item["error"]["code"], aliases(cli, "acme/a")) == ("VERDICT_FAILED", [])
    between_polls(lambda: cli.finish_smoke_test("acme/a"))
    tested = cli("push", cli.make_adapter("better"), "acme/a", "--wait", "--alias", "prod", "--json").json
    assert (tested["version"]["number"], aliases(cli, "acme/a@2")) == (2, ["prod"]), "its gate requires the test"


def test_what_no_worker_loads_is_not_waited_for(cli: CommandRunner) -> None:
    cli.add_base()
    folder = samples.write(non_peft_files.gguf_adapter(samples.llama()), cli.folder / "gguf")
    words = ("push", folder, "acme/gguf", "--base", "tiny-llama", "--wait")
    for _ in range(2):
        assert "has no smoke test: no worker loads the format 'gguf'" in cli(*words).stderr
    assert cli("smoke-test", "acme/gguf", "--json", expect=2).problem["code"] == "TEST_UNSUPPORTED"
    assert jobs(cli) == []


@pytest.mark.security
def test_a_missing_right_to_move_the_alias_is_reported_as_a_closed_gate(
    cli: CommandRunner, server: dict[str, str]
) -> None:
    at: dict[str, Any] = {"ADAPTER_REGISTRY": server["url"]}
    cli("base", "add", "tiny-llama", samples.llama().write(cli.folder / "base"), **at, ADAPTER_TOKEN=server["token"])
    words = ("token", "create", "waits", "--scope", "push", "--namespace", "waits", "--json")
    at["ADAPTER_TOKEN"] = cli(*words, **at, ADAPTER_TOKEN=server["token"]).json["secret"]
    folder = samples.write(samples.lora(samples.llama(hidden=128)), cli.folder / "does-not-fit")
    for options in ([], ["--wait"]):  # what failed is not tested, so there is nothing to wait for
        result = cli("push", folder, "waits/a", *options, "--alias", "canary", "--json", expect=6, **at).json
        assert (result["version"]["number"], bool(result["alias_refused"])) == (1, True)
    result = cli("push", cli.make_adapter("a"), "waits/a", "--alias", "canary", "--json", expect=6, **at).json
    assert "lacks the scope 'promote' of alias 'canary'" in result["alias_refused"]
