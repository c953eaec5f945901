"""Evaluation by command: check, verify, validate, and the jobs behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from cli import session
from registry.api.jobs import ClaimRequest, FailRequest, RenewRequest
from registry.client.registry import Registry
from registry.evaluation.verdicts import Finding
from tests import forge
from tests.cli.desk import Desk


def test_check_judges_a_folder_and_a_version_and_keeps_nothing(desk: Desk) -> None:
    desk.base()
    desk.base(forge.gpt2())
    folder = desk.adapter("mine")
    assert desk("check", folder, "--json").json["outcome"] == "pass"
    assert desk("list", "--json").json["items"] == []
    assert "is not a module of tiny-gpt2" in desk("check", folder, "--base", "tiny-gpt2", expect=6).stdout
    desk("push", folder, "acme/support", "--base", "tiny-llama")
    assert desk("check", "acme/support").exit_code == 0
    assert "the push reads the numbers" in desk("check", folder).stdout
    assert "the push" not in desk("check", "acme/support").stdout
    assert "there is no folder" in desk("check", "./nowhere", expect=2).stderr
    assert "is a file" in desk("check", f"{folder}/adapter_config.json", expect=2).stderr
    verdict = desk("check", "acme/support", "--base", "tiny-gpt2", "--json", expect=6).json
    assert (verdict["base"], verdict["outcome"]) == ("tiny-gpt2", "fail")
    assert [v["check"] for v in desk("show", "acme/support", "--json").json["verdicts"]] == ["compat", "weights"]


def test_verify_reads_the_bytes_again_and_finds_one_that_changed(desk: Desk, tmp_path: Path) -> None:
    desk.base()
    pushed = desk.push("acme/support")
    assert desk("verify", "acme/support", "--json").json["ok"] is True
    weights = next(f for f in pushed["version"]["files"] if f["path"] == "adapter_model.safetensors")
    blob = next((tmp_path / "data" / "blobs").rglob(weights["digest"].removeprefix("sha256:")))
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    said = desk("verify", "acme/support", "--json", expect=70).json
    assert [file["path"] for file in said["files"] if not file["ok"]] == ["adapter_model.safetensors"]
    assert "do not use it" in desk("verify", "acme/support", expect=70).stdout


def test_what_a_worker_says_steers_no_terminal(desk: Desk) -> None:
    evil = "\x1b]0;all is well\x07\u202e"
    desk.base()
    desk.push("acme/support")
    desk.tried(
        "acme/support@1", Finding(code="smoke.odd", severity="error", location=evil, message=f"it is {evil} odd")
    )
    desk("smoke-test", "acme/support")
    with session.embedded(Registry) as registry:
        claimed = registry.claim(ClaimRequest(worker=evil))
        assert claimed is not None
        registry.renew(claimed.job.id, RenewRequest(lease_token=claimed.lease.token, progress=evil))
        registry.fail(claimed.job.id, FailRequest(lease_token=claimed.lease.token, error=evil, final=True))
    for words in (["show", "acme/support"], ["job", "list"], ["job", "show", claimed.job.id]):
        told = desk(*words).stdout
        assert "all is well" in told, words
        assert [letter for letter in told if letter in evil and not letter.isprintable()] == [], words


def test_a_job_can_be_asked_for_looked_at_and_cancelled(desk: Desk) -> None:
    desk.base()
    desk.push("acme/support")
    job = desk("smoke-test", "acme/support", "--json").json
    assert (job["state"], job["kind"], job["subject"]) == ("queued", "smoke-test", "acme/support@1")
    assert desk("smoke-test", "acme/support", "--timeout", "0.01", "--json", expect=75).problem["code"] == "TRY_LATER"
    assert job["id"] in desk("job", "list").stdout
    assert "smoke-test acme/support@1 on tiny-llama" in desk("job", "show", job["id"]).stdout
    assert desk("job", "cancel", job["id"], "--json").json["state"] == "cancelled"
    assert desk("job", "cancel", job["id"], "--json").json["state"] == "cancelled"
    assert desk("job", "show", "job_none", "--json", expect=4).problem["code"] == "JOB_UNKNOWN"


@pytest.mark.parametrize(("severity", "code"), [("error", 6), ("warning", 0)])
def test_waiting_for_a_verdict_ends_with_its_exit_code(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, severity: Literal["error", "warning"], code: int
) -> None:
    desk.base()
    desk.push("acme/support")
    found = Finding(code="smoke.no_effect", severity=severity, location="logits", message="the logits do not move")
    # Between two looks at the job, where the command would sleep, a worker files its verdict.
    monkeypatch.setattr("cli.jobs.time.sleep", lambda _seconds: desk.tried("acme/support", found))
    said = desk("smoke-test", "acme/support", "--wait", expect=code)
    assert "the logits do not move" in said.stdout


def test_a_campaign_that_is_waited_for_tells_its_id_before_it_is_over(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.base()
    desk.push("acme/support")

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cli.smoke_tests.time.sleep", interrupt)
    told = desk("smoke-test", "--all", "--base", "tiny-llama", "--wait", expect=1).stderr
    again = next(word for word in told.replace("`", " ").split() if word.startswith("cam_"))
    assert desk("smoke-test", "--campaign", again, "--json").json["states"] == {"queued": 1}


def test_a_push_can_wait_for_its_verdict_and_be_strict_about_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.base()
    folder = desk.adapter("mine")
    found = Finding(code="smoke.no_effect", severity="error", location="logits", message="the logits do not move")
    monkeypatch.setattr("cli.jobs.time.sleep", lambda _seconds: desk.tried("acme/support", found))
    said = desk("push", folder, "acme/support", "--wait", "--strict", "--json", expect=6).json
    assert [(v["check"], v["outcome"]) for v in said["version"]["verdicts"]] == [
        ("compat", "pass"),
        ("weights", "pass"),
        ("smoke", "fail"),
    ]
