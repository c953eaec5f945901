"""`adapter agent` on a real HTTP engine: one pass, its exit code, and what it says to the fleet."""

from __future__ import annotations

import signal

import pytest

from registry.serving.agent.agent import Agent
from registry.serving.store import in_use
from tests.cli.desk import Desk
from tests.serving.stand_ins import SGLangServer, VLLMServer


def test_one_pass_loads_reports_and_says_by_its_exit_code_whether_all_is_ready(desk: Desk) -> None:
    desk.base()
    desk.push("acme/support", "--alias", "canary")
    desk.push("acme/large", "--alias", "canary", rank=32)
    with VLLMServer() as engine:
        words = ["agent", "--engine", f"vllm={engine.url}", "--base", "tiny-llama", "--alias", "canary", "--once",
                 "--dir", desk.folder / "shelf", "--node", "gpu-1", "--metrics-port", "0"]  # fmt: skip
        said = desk(*words).stdout
        assert "metrics: http://127.0.0.1:" in said
        assert "acme/support  acme-support-v1  ready" in said
        assert sorted(engine.loaded) == ["acme-large-v1", "acme-support-v1"]
        profile = ["--profile", "vllm==0.33.0,max_lora_rank=16", "--json"]
        items = desk(*words, *profile, expect=6).json["items"]
        assert {item["name"]: item["state"] for item in items} == {"acme/large": "refused", "acme/support": "ready"}
        assert "unverified" in desk("fleet", "--node", "gpu-1").stdout
    assert desk(*words, "--json", expect=75).problem["code"] == "SERVER_UNREACHABLE"


def test_several_engines_share_a_shelf_and_one_that_is_away_holds_up_no_other(desk: Desk) -> None:
    desk.base()
    desk.push("acme/support", "--alias", "canary")
    served = desk.folder / "served"
    with VLLMServer() as first, SGLangServer() as second:
        engines = [f"vllm={first.url}", f"sglang={second.url}", f"dir={served}"]
        words = ["agent", "--base", "tiny-llama", "--alias", "canary", "--once", "--dir", desk.folder / "shelf",
                 "--node", "gpu-1", "--profile", "vllm==0.33.0,max_lora_rank=16", "--json"]  # fmt: skip
        words += [word for engine in engines for word in ("--engine", engine)]
        items = desk(*words).json["items"]
        assert [item["state"] for item in items] == ["ready"] * 3
        assert len(list((desk.folder / "shelf" / "versions").iterdir())) == 1
        first.stop()
        second.loaded.clear()
        assert desk(*words, expect=75).problem["code"] == "SERVER_UNREACHABLE"
        assert list(second.loaded) == ["acme-support-v1"]
        shown = desk("fleet", "--json").json
        assert {view["engine"].partition("-")[0]: view["slots"][0]["state"] for view in shown["items"]} == {
            "vllm": "downloaded", "sglang": "serving", "dir": "serving",
        }  # fmt: skip
        assert [(c["serving"], c["nodes"]) for c in shown["convergence"]] == [(2, 3)]
        twice = ["--engine", engines[1], "--profile", "vllm==0.32.0"]
        assert "one kind and one port" in desk(*words, *twice[:2], expect=2).stderr
        assert "are of one kind" in desk(*words, *twice[2:], expect=2).stderr


def test_an_agent_ends_at_a_signal_and_leaves_its_engines_as_they_are(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.base()
    desk.push("acme/support", "--alias", "canary")
    with VLLMServer() as first, SGLangServer() as second:
        step = Agent.step

        def stepped(self: Agent) -> object:
            found = step(self)
            if first.loaded and second.loaded:
                signal.raise_signal(signal.SIGTERM)
            return found

        monkeypatch.setattr(Agent, "step", stepped)
        monkeypatch.setattr("registry.serving.agent.agent.WAIT_SECONDS", 1)  # polls end first, here
        before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        try:
            said = desk("agent", "--base", "tiny-llama", "--alias", "canary", "--dir", desk.folder / "shelf",
                        "--engine", f"vllm={first.url}", "--engine", f"sglang={second.url}").stdout  # fmt: skip
        finally:
            for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
                signal.signal(number, handler)
        assert [list(engine.loaded) for engine in (first, second)] == [["acme-support-v1"]] * 2
        assert f"vllm-{first.url.rpartition(':')[2]}: acme/support  acme-support-v1  ready" in said


def test_an_engine_that_an_agent_keeps_for_one_alias_is_not_emptied_for_another(desk: Desk) -> None:
    desk.base()
    desk.push("acme/support", "--alias", "canary")
    shelf, served = desk.folder / "shelf", desk.folder / "served"
    words = ["agent", "--base", "tiny-llama", "--engine", f"dir={served}", "--dir", shelf, "--once", "--drain", "0"]
    desk(*words, "--alias", "canary")
    for file in ("aliases.json", "aliases-dir-served.json"):
        with in_use.followed(shelf, file, "the alias 'prod' of 'tiny-llama'"):
            assert "for the alias 'prod' of 'tiny-llama'" in desk(*words, "--alias", "canary", expect=2).stderr
            slip = desk(*words, "--alias", "prod").stdout
    assert "no adapter of 'tiny-llama' that this token may see has the alias 'prod'" in slip
    assert (served / "acme-support-v1").is_symlink()
    assert (served / "current" / "acme--support").is_symlink()
    desk(*words, "--alias", "canary")


def test_an_engine_that_wants_a_key_is_shown_the_one_of_the_environment(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.base()
    desk.push("acme/support", "--alias", "canary")
    with VLLMServer() as engine:
        engine.key = "sesame"
        words = ["agent", "--engine", f"vllm={engine.url}", "--base", "tiny-llama", "--alias", "canary", "--once",
                 "--dir", desk.folder / "shelf"]  # fmt: skip
        assert "set ADAPTER_ENGINE_KEY" in desk(*words, expect=6).stderr
        monkeypatch.setenv("ADAPTER_ENGINE_KEY", "sesame")
        assert "acme-support-v1  ready" in desk(*words).stdout


def test_an_engine_of_no_known_kind_and_a_port_that_is_none_are_sentences(desk: Desk) -> None:
    desk.base()
    words = ["agent", "--base", "tiny-llama", "--dir", desk.folder, "--once", "--json", "--engine"]
    assert "is none of: vllm=URL" in desk(*words, "tgi=http://127.0.0.1", expect=2).problem["detail"]
    wrong = desk(*words, f"dir={desk.folder}/served", "--metrics-port", "x:y", expect=2)
    assert "[HOST:]PORT" in wrong.problem["detail"]
