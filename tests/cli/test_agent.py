"""`adapter agent` on a real HTTP engine: one pass, its exit code, and what it says to the fleet."""

from __future__ import annotations

from tests.cli.desk import Desk
from tests.serving.stand_ins import VLLMServer


def test_one_pass_loads_reports_and_says_by_its_exit_code_whether_all_is_ready(desk: Desk) -> None:
    desk.base()
    desk.push("acme/support", "--alias", "canary")
    desk.push("acme/large", "--alias", "canary", rank=32)
    with VLLMServer() as engine:
        words = ["agent", "--engine", f"vllm={engine.url}", "--base", "tiny-llama", "--alias", "canary", "--once",
                 "--dir", desk.folder / "shelf", "--box", "gpu-1", "--metrics-port", "0"]  # fmt: skip
        said = desk(*words).stdout
        assert "metrics: http://127.0.0.1:" in said
        assert "acme/support  acme-support-v1  ready" in said
        assert sorted(engine.loaded) == ["acme-large-v1", "acme-support-v1"]
        profile = ["--profile", "vllm==0.33.0,max_lora_rank=16", "--json"]
        items = desk(*words, *profile, expect=6).json["items"]
        assert {item["name"]: item["state"] for item in items} == {"acme/large": "refused", "acme/support": "ready"}
        assert "unproven" in desk("fleet", "--box", "gpu-1").stdout
    assert desk(*words, "--json", expect=75).problem["code"] == "SERVER_UNREACHABLE"


def test_an_engine_of_no_known_kind_and_a_port_that_is_none_are_sentences(desk: Desk) -> None:
    desk.base()
    words = ["agent", "--base", "tiny-llama", "--dir", desk.folder, "--once", "--json", "--engine"]
    assert "is none of: vllm=URL" in desk(*words, "tgi=http://127.0.0.1", expect=2).problem["detail"]
    wrong = desk(*words, f"dir={desk.folder}/served", "--metrics-port", "x:y", expect=2)
    assert "[HOST:]PORT" in wrong.problem["detail"]
