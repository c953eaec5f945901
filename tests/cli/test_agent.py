"""`adapter agent` with a real HTTP engine: one pass, its exit code, its reports."""

from __future__ import annotations

import json
import re
import signal
from typing import Any

import pytest

from registry.api.serving import DesiredState
from registry.client.registry import Registry
from registry.serving.agent.agent import Agent
from registry.serving.store import in_use
from tests.cli.runner import CommandRunner
from tests.serving.fake_engines import SGLangServer, VLLMServer


def test_one_pass_loads_reports_and_exits_6_if_an_adapter_is_not_ready(cli: CommandRunner) -> None:
    cli.add_base()
    cli.push("acme/support", "--alias", "canary")
    cli.push("acme/large", "--alias", "canary", rank=32)
    with VLLMServer() as engine:
        words = ["agent", "--sync", f"vllm={engine.url}", "--base", "tiny-llama", "--alias", "canary", "--once",
                 "--dir", cli.folder / "store", "--node", "gpu-1", "--metrics-port", "0"]  # fmt: skip
        result = cli(*words).stdout
        assert "metrics: http://127.0.0.1:" in result
        assert "acme/support  acme-support-v1  ready" in result
        assert sorted(engine.loaded) == ["acme-large-v1", "acme-support-v1"]
        profile = ["--engine", "vllm==0.33.0,max_lora_rank=16", "--json"]
        items = cli(*words, *profile, expect=6).json["items"]
        assert {item["name"]: item["state"] for item in items} == {"acme/large": "refused", "acme/support": "ready"}
        assert "unverified" in cli("fleet", "--node", "gpu-1").stdout
    assert cli(*words, "--json", expect=75).problem["code"] == "SERVER_UNREACHABLE"


@pytest.mark.security
def test_a_wrong_served_name_exits_70_and_stops_no_other_adapter(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.add_base()
    cli.push("acme/support", "--alias", "canary")
    cli.push("acme/other", "--alias", "canary")
    read = Registry.desired_state

    def lie(*words: Any, **query: Any) -> DesiredState:
        state = read(*words, **query)
        first, second = state.adapters
        return state.model_copy(update={"adapters": [first, second.model_copy(update={"served_name": "a\x1b[2Jb"})]})

    monkeypatch.setattr(Registry, "desired_state", lie)
    words = ["agent", "--sync", f"dir={cli.folder / 'served'}", "--base", "tiny-llama", "--alias", "canary", "--once",
             "--dir", cli.folder / "store"]  # fmt: skip
    printed = cli(*words, expect=70).stdout
    assert "acme/other  acme-other-v1  ready" in printed
    assert "the served name of acme/support@1 is" in printed
    assert "\x1b" not in printed
    items = cli(*words, "--json", expect=70).json["items"]
    assert {item["name"]: item["corrupt"] for item in items} == {"acme/other": False, "acme/support": True}


def test_several_engines_share_a_store_and_one_that_is_down_delays_no_other(cli: CommandRunner) -> None:
    cli.add_base()
    cli.push("acme/support", "--alias", "canary")
    served = cli.folder / "served"
    with VLLMServer() as first, SGLangServer() as second:
        engines = [f"vllm={first.url}", f"sglang={second.url}", f"dir={served}"]
        words = ["agent", "--base", "tiny-llama", "--alias", "canary", "--once", "--dir", cli.folder / "store",
                 "--node", "gpu-1", "--engine", "vllm==0.33.0,max_lora_rank=16", "--json"]  # fmt: skip
        words += [word for engine in engines for word in ("--sync", engine)]
        items = cli(*words).json["items"]
        assert [item["state"] for item in items] == ["ready"] * 3
        assert len(list((cli.folder / "store" / "versions").iterdir())) == 1
        first.stop()
        second.loaded.clear()
        assert cli(*words, expect=75).problem["code"] == "SERVER_UNREACHABLE"
        assert list(second.loaded) == ["acme-support-v1"]
        shown = cli("fleet", "--json").json
        assert {view["engine"].partition("-")[0]: view["slots"][0]["state"] for view in shown["items"]} == {
            "vllm": "downloaded", "sglang": "serving", "dir": "serving",
        }  # fmt: skip
        assert [(c["serving"], c["nodes"]) for c in shown["convergence"]] == [(2, 3)]
        twice = ["--sync", engines[1], "--engine", "vllm==0.32.0"]
        assert "one kind and one port" in cli(*words, *twice[:2], expect=2).stderr
        assert "are of one kind" in cli(*words, *twice[2:], expect=2).stderr


def test_a_signal_ends_the_agent_and_leaves_the_engines_unchanged(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.add_base()
    cli.push("acme/support", "--alias", "canary")
    with VLLMServer() as first, SGLangServer() as second:
        step = Agent.step

        def stepped(self: Agent) -> object:
            slots = step(self)
            if first.loaded and second.loaded:
                signal.raise_signal(signal.SIGTERM)
            return slots

        monkeypatch.setattr(Agent, "step", stepped)
        monkeypatch.setattr("registry.serving.agent.agent.WAIT_SECONDS", 1)  # polls end first, here
        before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        try:
            result = cli("agent", "--base", "tiny-llama", "--alias", "canary", "--dir", cli.folder / "store",
                        "--sync", f"vllm={first.url}", "--sync", f"sglang={second.url}").stderr  # fmt: skip
        finally:
            for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
                signal.signal(number, handler)
        assert [list(engine.loaded) for engine in (first, second)] == [["acme-support-v1"]] * 2
        assert f"vllm-{first.url.rpartition(':')[2]}: acme/support  acme-support-v1  ready" in result
        lines = result.splitlines()
        assert all(re.match(r"\S+Z (INFO|WARNING) ", line) for line in lines), result
        assert "INFO following 'canary' of 'tiny-llama' on " in lines[0]
        assert any(line.endswith("INFO stopped") for line in lines)


def test_notes_about_a_registry_that_is_away_are_log_lines(cli: CommandRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.client.transport.retries.PAUSE_SECONDS", 0.0)
    words = ["agent", "--base", "tiny-llama", "--sync", f"dir={cli.folder / 'served'}", "--dir", cli.folder / "store"]
    away = {"ADAPTER_LOG": "json", "ADAPTER_REGISTRY": "http://127.0.0.1:9", "ADAPTER_TOKEN": "t"}
    note = json.loads(cli(*words, "--once", expect=75, **away).stderr.splitlines()[0])
    assert note["level"] == "INFO", "an outage is a warning when it begins and ends, not with each repetition"
    assert note["message"].endswith("refused; trying again")


def test_an_engine_in_use_for_one_alias_is_not_emptied_for_another(cli: CommandRunner) -> None:
    cli.add_base()
    cli.push("acme/support", "--alias", "canary")
    store, served = cli.folder / "store", cli.folder / "served"
    words = ["agent", "--base", "tiny-llama", "--sync", f"dir={served}", "--dir", store, "--once", "--drain", "0s"]
    cli(*words, "--alias", "canary")
    for file in ("aliases.json", "aliases-dir-served.json"):
        with in_use.follow(store, file, "the alias 'prod' of 'tiny-llama'"):
            assert "for the alias 'prod' of 'tiny-llama'" in cli(*words, "--alias", "canary", expect=2).stderr
            slip = cli(*words, "--alias", "prod", expect=4).stdout
    assert "no adapter of 'tiny-llama' that this token may see has the alias 'prod'" in slip
    assert (served / "acme-support-v1").is_symlink()
    assert (served / "current" / "acme--support").is_symlink()
    cli(*words, "--alias", "canary")


def test_the_api_key_of_an_engine_comes_from_the_environment(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.add_base()
    cli.push("acme/support", "--alias", "canary")
    with VLLMServer() as engine:
        engine.key = "sesame"
        words = ["agent", "--sync", f"vllm={engine.url}", "--base", "tiny-llama", "--alias", "canary", "--once",
                 "--dir", cli.folder / "store"]  # fmt: skip
        assert "set ADAPTER_ENGINE_KEY" in cli(*words, expect=6).stderr
        monkeypatch.setenv("ADAPTER_ENGINE_KEY", "sesame")
        assert "acme-support-v1  ready" in cli(*words).stdout


def test_an_unknown_engine_kind_and_a_wrong_port_are_errors(cli: CommandRunner) -> None:
    cli.add_base()
    words = ["agent", "--base", "tiny-llama", "--dir", cli.folder, "--once", "--json", "--sync"]
    assert (
        "must be KIND=LOCATION, such as vllm=http://127.0.0.1:8000"
        in cli(*words, "tgi=http://127.0.0.1", expect=2).problem["detail"]
    )
    wrong = cli(*words, f"dir={cli.folder}/served", "--metrics-port", "x:y", expect=2)
    assert "[HOST:]PORT" in wrong.problem["detail"]
