"""Engines by command: check, engine-settings, recheck-engines; search; diff; bars and heat maps."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from cli import drawing, versions
from tests import fixtures
from tests.cli.desk import Desk

VLLM, WIDE = "vllm==0.33.0", "vllm==0.33.0,max_lora_rank=64"


@pytest.fixture
def stocked(desk: Desk) -> Desk:
    desk.base()
    return desk


def test_a_folder_and_a_version_are_asked_about_engines(stocked: Desk) -> None:
    folder = stocked.adapter("wide", rank=64)
    for what in (folder, "acme/wide"):
        said = stocked("check", what, "--engine", VLLM, "--engine", WIDE, expect=6)
        assert f"in {VLLM}: fail" in said.stdout
        assert f"in {WIDE}: pass" in said.stdout
        assert "Raise --max-lora-rank" in said.stdout
        items = stocked("check", what, "--engine", WIDE, "--json").json["items"]
        assert [(item["check"], item["outcome"]) for item in items] == [("compat", "pass"), ("engine", "pass")]
        if what is folder:
            stocked("push", folder, "acme/wide", "--base", "tiny-llama")
    assert stocked("check", folder, "--engine", "vlm==1", "--json", expect=2).problem["code"] == "SETTING_INVALID"


def test_a_fleet_is_told_what_to_set(stocked: Desk) -> None:
    assert "no adapters yet" in stocked("engine-settings", "tiny-llama", "--engine", VLLM).stdout
    stocked.push("acme/small", rank=8)
    stocked.push("acme/large", rank=64)
    said = stocked("engine-settings", "tiny-llama", "--engine", VLLM).stdout
    assert "2 adapters of tiny-llama" in said
    assert "--max-lora-rank 64" in said
    assert "only because of acme/large" in said
    assert "Missing option '--engine'" in stocked("engine-settings", "tiny-llama", expect=2).stderr


def test_verdicts_of_the_listed_engines_are_kept_searched_and_renewed(stocked: Desk) -> None:
    stocked.push("acme/small", rank=8)
    said = stocked("recheck-engines", REGISTRY_ENGINES=VLLM).stdout
    assert said == "checked 1 version, wrote 1 verdict\n"
    stocked("push", stocked.adapter("large", rank=64), "acme/large", "--base", "tiny-llama", REGISTRY_ENGINES=VLLM)
    found = stocked("list", "--engine", VLLM, "--json", REGISTRY_ENGINES=VLLM).json["items"]
    assert [item["name"] for item in found] == ["acme/small"]
    found = stocked("list", "--engine", VLLM, "--outcome", "fail", "--json", REGISTRY_ENGINES=VLLM).json["items"]
    assert [item["name"] for item in found] == ["acme/large"]
    assert stocked("recheck-engines", "--json", REGISTRY_ENGINES=VLLM).json == {
        "versions": 2,
        "headers": 0,
        "verdicts": 0,
    }
    assert f"engine  pass  {VLLM}" in stocked("show", "acme/small").stdout
    assert stocked("list", "--engine", VLLM, "--json", expect=2).problem["code"] == "REQUEST_INVALID"


def test_the_list_is_searched_by_rank_and_modules(stocked: Desk) -> None:
    stocked.push("acme/small", rank=4, targets=("q_proj",))
    stocked.push("acme/large", rank=64, targets=("q_proj", "down_proj"))

    def names(*words: object) -> list[str]:
        return [item["name"] for item in stocked("list", *words, "--json").json["items"]]

    assert names("--rank-min", 8) == ["acme/large"]
    assert names("--rank-max", 8) == ["acme/small"]
    assert names("--target", "q_proj", "--target", "down_proj") == ["acme/large"]
    assert names("--owner", "nobody") == []
    assert "--outcome needs the --engine" in stocked("list", "--outcome", "fail", expect=2).stderr


def test_two_versions_differ_by_what_is_said(stocked: Desk) -> None:
    stocked.push("acme/support", rank=4, targets=("q_proj",))
    stocked.push("acme/support", rank=8, targets=("q_proj", "v_proj"))
    said = stocked("diff", "acme/support@1", "acme/support@2").stdout
    for line in ("config  r: 4 → 8", "facts   rank: 4 → 8", "targets added: v_proj",
                 "files   adapter_model.safetensors changed"):  # fmt: skip
        assert line in said
    found = stocked("diff", "acme/support@1", "acme/support@2", "--json").json
    assert {"field": "r", "a": 4, "b": 8} in found["config"]
    assert (found["targets"], found["cosines"]) == ({"added": ["v_proj"], "removed": []}, None)
    assert "the same bytes" in stocked("diff", "acme/support@1", "acme/support@1").stdout


@pytest.mark.skipif(not fixtures.AVAILABLE, reason="the worker extra (torch, peft) is not installed")
def test_two_adapters_are_compared_by_their_numbers(stocked: Desk, tmp_path: Path) -> None:
    folder = stocked.adapter("here", targets=("q_proj", "v_proj"))
    stocked("push", folder, "acme/support", "--base", "tiny-llama")
    picture = tmp_path / "change.svg"
    found = stocked("diff", "acme/support", folder, "--plot", picture, "--json").json["cosines"]
    assert set(found) == {f"model.layers.{i}.self_attn.{m}_proj" for i in range(4) for m in "qv"}
    assert all(value == pytest.approx(1.0, abs=1e-5) for value in found.values())
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")
    other = stocked.adapter("other", targets=("q_proj",))
    assert "updates cosine" in stocked("diff", folder, other, "--values").stdout


def test_norms_of_the_weights_are_bars_by_layer_and_a_heat_map(stocked: Desk, tmp_path: Path) -> None:
    stocked.push("acme/support")
    picture = tmp_path / "norms.svg"
    said = stocked("show", "acme/support", "--plot", picture).stdout
    assert len(re.findall(r"^ +[0-3] █+\S? 0\.[0-9]+$", said, re.MULTILINE)) == 4
    assert "█" * drawing.BAR_WIDTH in said  # the largest fills the line
    texts = [text.text for text in ElementTree.parse(picture).iter() if text.tag.endswith("text")]
    assert {"layer 0", "layer 3", "q_proj", "v_proj"} <= set(texts)
    assert "tiny-llama was not identified" in said
    assert "in layers" not in said  # all modules are alike
    one = {"path": "layers.*.v_proj", "layers": "0-3", "rank": 4, "alpha": 32.0, "scale": 8.0}
    other = {"path": "layers.*.q_proj", "layers": "", "rank": 8, "alpha": None, "scale": None}
    lines = ["layers.*.v_proj in layers 0-3: rank 4, alpha 32, scale 8", "layers.*.q_proj: rank 8"]
    assert versions.update_lines({"updates": [one, other]}) == lines
    assert stocked("show", "acme/support", "--plot", tmp_path / "norms.jpg", expect=2)
