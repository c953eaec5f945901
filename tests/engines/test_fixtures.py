"""The rules over the adapters that the real libraries made: the good, the bad and the image adapters."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path

import pytest

from registry import bases, compat, engines
from registry.adapters import formats, peft, safetensors
from registry.adapters.formats import images as image_facts
from registry.adapters.peft import config
from registry.engines import facts as engine_facts
from registry.engines.facts import EngineFacts
from registry.errors import RegistryError
from registry.evaluation.verdicts import Outcome, add_up
from tests import fixtures
from tests.samples import CONFIG, WEIGHTS

pytestmark = pytest.mark.skipif(not fixtures.AVAILABLE, reason="the worker extra is not installed")

VLLM = "vllm==0.33.0,max_lora_rank=64"
ENGINES = ("peft==0.21.2", "vllm==0.28.0", "vllm==0.31.0", VLLM, "sglang==0.5.23", "llama.cpp", "lorax", "tgi",
           "lmdeploy==0.18.0", "tensorrt-llm", "ollama")  # fmt: skip
SEEN_IN_VALUES_ONLY = {"nan", "inf-one-value"}
SERVED_BY_VLLM = {
    "lora-r4", "lora-r8-all", "lora-r64", "lora-all-linear", "lora-regex", "lora-layers-to-transform",
    "lora-rank-pattern", "lora-rslora", "lora-on-embedding", "lora-tied-embedding", "lora-pissa-converted",
    "lora-olora-converted", "lora-exclude", "lora-fused-qkv", "lora-moe-attn", "lora-bfloat16", "lora-float16",
    "lora-float8_e4m3fn",
}  # fmt: skip
"""Good adapters: what 0.31.0 and 0.32.0 served as PEFT did when they were run, and what the code of 0.33.0 says."""


@cache
def base(name: str) -> bases.BaseSpec:
    folder = fixtures.tiny_bases() / name
    headers = [safetensors.read_bytes(f.read_bytes(), file=f.name) for f in sorted(folder.glob("*.safetensors"))]
    return bases.base_spec(name, json.loads((folder / "config.json").read_text()), headers)


def facts_of(folder: Path, base_name: str) -> EngineFacts | None:
    """The facts; None if the adapter is refused before it is evaluated."""
    try:
        written = config.read_config((folder / CONFIG).read_bytes())
        spec = peft.describe(written, safetensors.read_bytes((folder / WEIGHTS).read_bytes(), file=WEIGHTS))
    except (RegistryError, FileNotFoundError):
        return None
    compat_outcome = add_up(compat.check_fit(spec, base(base_name)))
    return engine_facts.of_lora(spec, compat=compat_outcome.value, base=base(base_name))


def outcome(facts: EngineFacts, profile: str) -> Outcome:
    return add_up(engines.evaluate(facts, engines.profile(profile)))


@pytest.fixture(scope="module")
def good() -> dict[str, EngineFacts]:
    folder = fixtures.good()
    every = {n: facts_of(folder / n, entry["base"]) for n, entry in fixtures.manifest(folder).items()}
    return {name: facts for name, facts in every.items() if facts is not None}


def test_peft_serves_every_good_adapter(good: dict[str, EngineFacts]) -> None:
    assert {
        n: outcome(f, "peft==0.21.2") for n, f in good.items() if outcome(f, "peft==0.21.2") not in ("pass", "warn")
    } == {}


def test_vllm_is_said_to_serve_exactly_what_it_serves(good: dict[str, EngineFacts]) -> None:
    assert {name for name, facts in good.items() if outcome(facts, VLLM) == "pass"} == SERVED_BY_VLLM & set(good)


@pytest.mark.parametrize("profile", ENGINES)
def test_no_engine_is_said_to_serve_an_adapter_that_is_broken(profile: str) -> None:
    folder = fixtures.bad()
    passed = set()
    for name, entry in fixtures.manifest(folder).items():
        facts = facts_of(folder / name, entry["base"])
        if entry["fits"] == "no" and facts is not None and outcome(facts, profile) in ("pass", "warn"):
            passed.add(name)
    assert passed - SEEN_IN_VALUES_ONLY == set()


@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")
def test_image_files_are_recognized_and_left_to_a_worker(tmp_path: Path) -> None:
    from tests.fixtures import image_adapters, make_base

    make_base.image(tmp_path / "bases")
    (tmp_path / "files").mkdir()
    entries = image_adapters.make(tmp_path / "bases", tmp_path / "files")
    for name, entry in entries.items():
        data = (tmp_path / "files" / entry["file"]).read_bytes()
        header = safetensors.read_bytes(data, file=name)
        format_ = formats.of_header(header).format
        facts = image_facts.of_header(header, format_)
        assert format_.name == entry["naming"], name
        assert facts.family.startswith(entry["family"]), name
        assert outcome(engine_facts.of_file(facts), "diffusers==0.42.1") == "unknown", name
