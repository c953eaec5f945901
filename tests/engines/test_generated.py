"""The generated facts of each release: complete, equal to what its source says, and in agreement with our own rules."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from registry import engines
from registry.engines import rulebook, source_facts
from registry.engines.facts import EngineFacts
from registry.engines.source_facts import version_of
from registry.evaluation.verdicts import Outcome, add_up
from scripts.engine_rules import FOLDER, compressed, generated, read, rendered

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(os.environ.get("ENGINE_SOURCES", ROOT / ".cache" / "engines" / "wheels"))
RELEASES = [(engine, version) for engine in ("vllm", "sglang") for version in rulebook.engine(engine).examined]
HELD: dict[str, str] = {
    "alora_invocation_tokens": "alora", "bias": "bias", "init_lora_weights": "initialization",
    "layer_replication": "layer_replication", "lora_bias": "lora_bias", "modules_to_save": "saved_modules",
    "use_bdlora": "bdlora", "use_dora": "dora", "use_qalora": "qalora",
    "r": "rank",
    "lora_added_tokens_size": "",  # from added_tokens.json, which is no file of an adapter here
}  # fmt: skip
"""A field that an engine refuses → the property under which our rules say so."""
EMBEDDING = EngineFacts(modules=("embed_tokens",), embedding_targets=("embed_tokens",), embedding_lora=True)
HEAD = EngineFacts(modules=("lm_head",), head_lora=True)


def outcome(facts: EngineFacts, profile: str, architecture: str, inner: str = "") -> Outcome:
    base = {"base_architecture": architecture, "base_text_architecture": inner, "base_vocabulary": 512}
    changed = facts.model_copy(update=base)
    return add_up(engines.evaluate(changed, engines.profile(profile)))


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_source_of_every_examined_version_was_read_and_nothing_in_it_stayed_open(engine: str) -> None:
    assert source_facts.examined_versions(engine) == rulebook.engine(engine).examined
    for version, facts in generated(engine).items():
        rows = facts["classes"].values()
        assert len(facts["architectures"]) > 250, version
        assert [row for row in rows if row["lora"] is None or (row["lora"] and row["embedding"] is None)] == [], version


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_file_is_as_the_script_writes_it(engine: str) -> None:
    assert (FOLDER / f"{engine}.json").read_text() == rendered(compressed(engine, generated(engine)))


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "version"), RELEASES)
def test_the_file_says_what_the_source_says(engine: str, version: str) -> None:
    folder = SOURCES / f"{engine}-{version}"
    if not folder.exists():
        pytest.skip(f"no source of {engine} {version}: `make test-engines` brings it, or set ENGINE_SOURCES")
    assert read(engine, str(folder)) == generated(engine)[version]


@pytest.mark.parametrize(("engine", "version"), RELEASES)
def test_our_rules_refuse_each_field_that_the_source_refuses(engine: str, version: str) -> None:
    rules = rulebook.engine(engine)
    for field, message in generated(engine)[version]["refused_fields"].items():
        statements = list(rules.statements(HELD[field], version_of(version))) if HELD[field] else []
        refusals = [s for s in statements if isinstance(s, rulebook.Rule) and s.effect == "refuses"]
        assert refusals or not HELD[field], f"{field}: {message}"


@pytest.mark.parametrize("version", rulebook.engine("vllm").examined)
def test_the_ranks_of_a_profile_are_those_of_the_source(version: str) -> None:
    choices = rulebook.engine("vllm").settings["max_lora_rank"].choices
    assert source_facts.value("vllm", "ranks", version_of(version)) == list(choices)


@pytest.mark.parametrize("version", rulebook.engine("vllm").examined)
def test_a_base_that_a_version_does_not_register_gets_no_yes_there(version: str) -> None:
    registered = generated("vllm")[version]["architectures"]
    others = set(source_facts.architectures("vllm")) - set(registered)
    assert others
    of = partial(source_facts.of, "vllm", version_of(version))  # what is converted from a registered class is not other
    for architecture in (a for a in others if not of(a)["source_registered"]):
        assert outcome(EngineFacts(), f"vllm=={version}", architecture) is Outcome.UNKNOWN, architecture


@pytest.mark.parametrize(
    ("architecture", "embedding", "head"),
    [("LlamaForCausalLM", "pass", "pass"), ("Qwen3ForCausalLM", "pass", "pass"), ("MistralForCausalLM", "fail", "fail"),
     ("Qwen2ForCausalLM", "fail", "fail"), ("Gemma3ForCausalLM", "fail", "fail"), ("GPT2LMHeadModel", "fail", "fail"),
     ("LlavaForConditionalGeneration", "unknown", "unknown"), ("", "unknown", "unknown")],
)  # fmt: skip
def test_lora_on_the_embedding_or_the_head_depends_on_the_class(architecture: str, embedding: str, head: str) -> None:
    profile = "vllm==0.33.0"
    assert (outcome(EMBEDDING, profile, architecture), outcome(HEAD, profile, architecture)) == (embedding, head)


@pytest.mark.parametrize(
    ("inner", "expected"),
    [("LlamaForCausalLM", "pass"), ("Qwen3ForCausalLM", "pass"), ("MistralForCausalLM", "fail"),
     ("Qwen2ForCausalLM", "fail"), ("GoneForCausalLM", "unknown"), ("LlavaForConditionalGeneration", "unknown"),
     ("", "unknown")],
)  # fmt: skip
@pytest.mark.parametrize("wrapper", ["LlavaForConditionalGeneration", "InternVLChatModel"])
def test_a_wrapper_takes_lora_where_the_language_model_in_it_does(wrapper: str, inner: str, expected: str) -> None:
    profile = "vllm==0.33.0"
    assert [outcome(facts, profile, wrapper, inner) for facts in (EMBEDDING, HEAD)] == [expected, expected]
    linear = EngineFacts(method="LORA", modules=("q_proj",), linear_targets=("q_proj",))
    assert outcome(linear, profile, wrapper, inner) is Outcome.PASS


def test_classes_under_both_folders_of_models_were_read() -> None:
    for architecture in ("DeepseekV32ForCausalLM", "Qwen4ExpForCausalLM"):
        row = source_facts.of("vllm", (0, 33, 0), architecture)
        assert row["source_lora"] is True
        assert row["source_class"].startswith("models.")
