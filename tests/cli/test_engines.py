"""`adapter check --engine`, `engine-settings`, `recheck-engines`, `list`, `diff` and the norms of `show`."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from cli.console import heatmap, versions
from tests import fixtures
from tests.cli.runner import CommandRunner

VLLM, WIDE = "vllm==0.33.0", "vllm==0.33.0,max_lora_rank=64"


@pytest.fixture
def cli(cli: CommandRunner) -> CommandRunner:
    cli.add_base()
    return cli


def test_a_folder_and_a_version_are_checked_for_engines(cli: CommandRunner) -> None:
    folder = cli.make_adapter("wide", rank=64)
    for target in (folder, "acme/wide"):
        result = cli("check", target, "--engine", VLLM, "--engine", WIDE, expect=6)
        assert f"in {VLLM}: fail" in result.stdout
        assert f"in {WIDE}: pass" in result.stdout
        assert "Raise --max-lora-rank" in result.stdout
        items = cli("check", target, "--engine", WIDE, "--json").json["items"]
        assert [(item["check"], item["outcome"]) for item in items] == [
            ("compat", "warn"),  # the rank is over the width of v_proj
            ("weights", "pass"),
            ("engine", "pass"),
        ]
        if target is folder:
            cli("push", folder, "acme/wide", "--base", "tiny-llama")
    assert cli("check", folder, "--engine", "vlm==1", "--json", expect=2).problem["code"] == "SETTING_INVALID"


def test_engine_settings_name_the_flags(cli: CommandRunner) -> None:
    assert "no adapters yet" in cli("engine-settings", "tiny-llama", "--engine", VLLM).stdout
    cli.push("acme/small", rank=8)
    cli.push("acme/large", rank=64)
    result = cli("engine-settings", "tiny-llama", "--engine", VLLM).stdout
    assert "2 adapters of tiny-llama" in result
    assert "--max-lora-rank 64" in result
    assert "only because of acme/large" in result
    assert "Missing option '--engine'" in cli("engine-settings", "tiny-llama", expect=2).stderr


def test_engine_verdicts_are_stored_searched_and_renewed(cli: CommandRunner) -> None:
    cli.push("acme/small", rank=8)
    result = cli("recheck-engines", REGISTRY_ENGINES=VLLM).stdout
    assert result == "checked 1 version, wrote 1 verdict\n"
    cli("push", cli.make_adapter("large", rank=64), "acme/large", "--base", "tiny-llama", REGISTRY_ENGINES=VLLM)
    items = cli("list", "--engine", VLLM, "--json", REGISTRY_ENGINES=VLLM).json["items"]
    assert [item["name"] for item in items] == ["acme/small"]
    items = cli("list", "--engine", VLLM, "--outcome", "fail", "--json", REGISTRY_ENGINES=VLLM).json["items"]
    assert [item["name"] for item in items] == ["acme/large"]
    assert cli("recheck-engines", "--json", REGISTRY_ENGINES=VLLM).json == {
        "versions": 2,
        "headers": 0,
        "verdicts": 0,
    }
    assert f"engine  pass  {VLLM}" in cli("show", "acme/small").stdout
    assert cli("list", "--engine", VLLM, "--json", expect=2).problem["code"] == "REQUEST_INVALID"


def test_list_filters_by_rank_and_modules(cli: CommandRunner) -> None:
    cli.push("acme/small", rank=4, targets=("q_proj",))
    cli.push("acme/large", rank=64, targets=("q_proj", "down_proj"))

    def names(*words: object) -> list[str]:
        return [item["name"] for item in cli("list", *words, "--json").json["items"]]

    assert names("--rank-min", 8) == ["acme/large"]
    assert names("--rank-max", 8) == ["acme/small"]
    assert names("--target", "q_proj", "--target", "down_proj") == ["acme/large"]
    assert names("--owner", "nobody") == []
    assert "--outcome needs --engine" in cli("list", "--outcome", "fail", expect=2).stderr


def test_diff_lists_what_two_versions_differ_in(cli: CommandRunner) -> None:
    cli.push("acme/support", rank=4, targets=("q_proj",))
    cli.push("acme/support", rank=8, targets=("q_proj", "v_proj"))
    result = cli("diff", "acme/support@1", "acme/support@2").stdout
    for line in ("config  r: 4 → 8", "facts   rank: 4 → 8", "targets added: v_proj",
                 "files   adapter_model.safetensors changed"):  # fmt: skip
        assert line in result
    difference = cli("diff", "acme/support@1", "acme/support@2", "--json").json
    assert {"field": "r", "a": 4, "b": 8} in difference["config"]
    assert (difference["targets"], difference["cosines"]) == ({"added": ["v_proj"], "removed": []}, None)
    assert "same configuration, facts and bytes" in cli("diff", "acme/support@1", "acme/support@1").stdout


@pytest.mark.skipif(not fixtures.AVAILABLE, reason="the worker extra (torch, peft) is not installed")
def test_diff_compares_updates(cli: CommandRunner, tmp_path: Path) -> None:
    folder = cli.make_adapter("here", targets=("q_proj", "v_proj"))
    cli("push", folder, "acme/support", "--base", "tiny-llama")
    svg = tmp_path / "change.svg"
    result = cli("diff", "acme/support", folder, "--plot", svg, "--json").json["cosines"]
    assert set(result) == {f"model.layers.{i}.self_attn.{m}_proj" for i in range(4) for m in "qv"}
    assert all(value == pytest.approx(1.0, abs=1e-5) for value in result.values())
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    other = cli.make_adapter("other", targets=("q_proj",))
    assert "updates cosine" in cli("diff", folder, other, "--values").stdout
    stronger = cli.make_adapter("stronger", targets=("q_proj", "v_proj"), seed=1, alpha=32)
    same = cli.make_adapter("same", targets=("q_proj", "v_proj"), seed=1, alpha=16)
    assert cli("diff", same, stronger, "--values").stdout.splitlines()[-2:] == [
        "  updates cosine +1.000 on average over 8 modules: the same direction",
        "  updates norm × 2.000 in every module",
    ]


def test_norms_are_bars_by_layer_and_a_heat_map(cli: CommandRunner, tmp_path: Path) -> None:
    cli.push("acme/support")
    svg = tmp_path / "norms.svg"
    result = cli("show", "acme/support", "--norms", "--plot", svg).stdout
    assert len(re.findall(r"^ +[0-3] █+\S? 0\.[0-9]+$", result, re.MULTILINE)) == 4
    assert "█" * heatmap.BAR_WIDTH in result  # the largest fills the line
    texts = [text.text for text in ElementTree.parse(svg).iter() if text.tag.endswith("text")]
    assert {"layer 0", "layer 3", "q_proj", "v_proj"} <= set(texts)
    assert "tiny-llama was not identified" in result
    assert "in layers" not in result  # all modules are alike
    update = {"path": "layers.*.v_proj", "layers": "0-3", "rank": 4, "alpha": 32.0, "scale": 8.0}
    other = {"path": "layers.*.q_proj", "layers": "", "rank": 8, "alpha": None, "scale": None}
    lines = ["layers.*.v_proj in layers 0-3: rank 4, alpha 32, scale 8", "layers.*.q_proj: rank 8"]
    assert versions.update_lines({"updates": [update, other]}) == lines
    assert cli("show", "acme/support", "--plot", tmp_path / "norms.jpg", expect=2)
