"""`adapter check`, `verify`, `smoke-test` and `job`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from cli.console import session
from registry.api.jobs import ClaimRequest, FailRequest, RenewRequest
from registry.client.registry import Registry
from registry.findings import Finding
from tests import samples
from tests.cli.runner import CommandRunner


def test_check_evaluates_a_folder_and_a_version_and_stores_nothing(cli: CommandRunner) -> None:
    cli.add_base()
    cli.add_base(samples.gpt2())
    folder = cli.make_adapter("mine")
    assert [item["outcome"] for item in cli("check", folder, "--json").json["items"]] == ["pass", "pass"]
    assert cli("list", "--json").json["items"] == []
    assert "is not a module of tiny-gpt2" in cli("check", folder, "--base", "tiny-gpt2", expect=6).stdout
    cli("push", folder, "acme/support", "--base", "tiny-llama")
    assert cli("check", "acme/support").exit_code == 0
    assert "its weights: pass" in cli("check", folder).stdout
    assert "does not exist" in cli("check", "./nowhere", expect=2).stderr
    assert "is a file" in cli("check", f"{folder}/adapter_config.json", expect=2).stderr
    verdict = cli("check", "acme/support", "--base", "tiny-gpt2", "--json", expect=6).json["items"][0]
    assert (verdict["base"], verdict["outcome"]) == ("tiny-gpt2", "fail")
    assert [v["check"] for v in cli("show", "acme/support", "--json").json["verdicts"]] == ["compat", "weights"]


def test_verify_reads_the_bytes_again_and_finds_a_changed_one(cli: CommandRunner, tmp_path: Path) -> None:
    cli.add_base()
    pushed = cli.push("acme/support")
    assert cli("verify", "acme/support", "--json").json["ok"] is True
    weights = next(f for f in pushed["version"]["files"] if f["path"] == "adapter_model.safetensors")
    blob = next((tmp_path / "data" / "blobs").rglob(weights["digest"].removeprefix("sha256:")))
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    result = cli("verify", "acme/support", "--json", expect=70).json
    assert [file["path"] for file in result["files"] if not file["ok"]] == ["adapter_model.safetensors"]
    assert "do not use it" in cli("verify", "acme/support", expect=70).stdout


def test_texts_of_a_worker_do_not_steer_the_terminal(cli: CommandRunner) -> None:
    evil = "\x1b]0;all is well\x07\u202e"
    cli.add_base()
    cli.push("acme/support")
    cli.finish_smoke_test(
        "acme/support@1", Finding(code="smoke.odd", severity="error", location=evil, message=f"it is {evil} odd")
    )
    cli("smoke-test", "acme/support")
    with session.embedded(Registry) as registry:
        claimed = registry.claim(ClaimRequest(worker=evil))
        assert claimed is not None
        registry.renew(claimed.job.id, RenewRequest(lease_token=claimed.lease.token, progress=evil))
        registry.fail(claimed.job.id, FailRequest(lease_token=claimed.lease.token, error=evil, final=True))
    for words in (["show", "acme/support"], ["job", "list"], ["job", "show", claimed.job.id]):
        output = cli(*words).stdout
        assert "all is well" in output, words
        assert [letter for letter in output if letter in evil and not letter.isprintable()] == [], words


def test_a_job_is_submitted_shown_and_cancelled(cli: CommandRunner) -> None:
    cli.add_base()
    pushed = cli("push", cli.make_adapter("a"), "acme/support", "--wait-timeout", "0s", "--json", expect=75)
    assert (pushed.json["version"]["number"], pushed.problem["code"]) == (1, "TRY_LATER"), "the version is shown"
    job = cli("smoke-test", "acme/support", "--json").json
    assert (job["state"], job["kind"], job["subject"]) == ("queued", "smoke-test", "acme/support@1")
    assert cli("smoke-test", "acme/support", "--wait-timeout", "0s", "--json", expect=75).problem["code"] == "TRY_LATER"
    assert job["id"] in cli("job", "list").stdout
    assert "smoke-test acme/support@1 on tiny-llama" in cli("job", "show", job["id"]).stdout
    for ids in ([job["id"]], [job["id"], job["id"]]):
        assert [item["state"] for item in cli("job", "cancel", *ids, "--json").json["items"]] == ["cancelled"] * len(
            ids
        )
    assert cli("job", "show", "job_none", "--json", expect=4).problem["code"] == "JOB_UNKNOWN"


@pytest.mark.parametrize(("severity", "code"), [("error", 6), ("warning", 0)])
def test_waiting_for_a_verdict_ends_with_its_exit_code(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch, severity: Literal["error", "warning"], code: int
) -> None:
    cli.add_base()
    cli.push("acme/support")
    finding = Finding(code="smoke.no_effect", severity=severity, location="logits", message="the logits do not move")
    # The worker finishes while the command sleeps between two polls.
    monkeypatch.setattr("cli.jobs.time.sleep", lambda _seconds: cli.finish_smoke_test("acme/support", finding))
    result = cli("smoke-test", "acme/support", "--wait", expect=code)
    assert "the logits do not move" in result.stdout
    (job,) = cli("job", "list", "--json").json["items"]
    assert cli("job", "show", job["id"], "--wait", expect=code).stdout == result.stdout, "it waits again, for this job"


def test_waiting_for_a_campaign_prints_its_id_first(cli: CommandRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.add_base()
    cli.push("acme/support")

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cli.jobs.time.sleep", interrupt)
    output = cli("smoke-test", "--all", "--base", "tiny-llama", "--wait", expect=130).stderr
    again = next(word for word in output.replace("`", " ").split() if word.startswith("cam_"))
    assert cli("smoke-test", "--campaign", again, "--json").json["states"] == {"queued": 1}


def test_a_strict_push_waits_for_the_verdict(cli: CommandRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.add_base()
    folder = cli.make_adapter("mine")
    finding = Finding(code="smoke.no_effect", severity="error", location="logits", message="the logits do not move")
    monkeypatch.setattr("cli.jobs.time.sleep", lambda _seconds: cli.finish_smoke_test("acme/support", finding))
    result = cli("push", folder, "acme/support", "--wait", "--strict", "--json", expect=6).json
    assert [(v["check"], v["outcome"]) for v in result["version"]["verdicts"]] == [
        ("compat", "pass"),
        ("weights", "pass"),
        ("smoke", "fail"),
    ]


def test_show_names_the_job_that_will_test_a_version(
    cli: CommandRunner, server: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTER_REGISTRY", server["url"])
    monkeypatch.setenv("ADAPTER_TOKEN", server["token"])
    cli.add_base()
    job_id = cli.push("queued/support")["job_id"]
    line = f"smoke   not tested yet, its job is queued or runs: adapter job show {job_id}"
    assert line in cli("show", "queued/support").stdout
    cli("job", "cancel", job_id)
    assert "not tested yet: adapter smoke-test queued/support@1 --wait" in cli("show", "queued/support").stdout


def test_a_check_a_push_and_its_version_say_what_to_do_once_and_the_base_s_name_last(
    cli: CommandRunner, tmp_path: Path
) -> None:
    def lose(tensors: dict[str, samples.Tensor]) -> dict[str, samples.Tensor]:
        return {name: tensor for name, tensor in tensors.items() if "q_proj" not in name}

    files = samples.lora(samples.llama(), config={"base_model_name_or_path": "someone/else"}, change=lose)
    folder = samples.write(files, tmp_path / "lossy")
    cli.add_base()
    cure, name = "what to do: Push it for the base", "someone/else"
    checked = cli("check", str(folder), "--base", "tiny-llama", expect=6).stdout
    pushed = cli("push", str(folder), "acme/lossy", "--base", "tiny-llama").stdout
    shown = cli("show", "acme/lossy").stdout
    assert [text.count(cure) for text in (checked, pushed, shown)] == [1, 1, 1]
    assert checked.index(cure) < checked.index(name)
