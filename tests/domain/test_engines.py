"""Engine profiles, verdicts from facts, settings for a fleet, and the page that is made from the rules."""

from __future__ import annotations

import json
from typing import Any

import pytest

from registry import bases, engines
from registry.adapters import formats, safetensors
from registry.adapters.formats.facts import FileFacts
from registry.bases.modules import ModuleShape
from registry.digest import Digest
from registry.engines import facts as engine_facts
from registry.engines import rulebook
from registry.engines import settings as engine_settings
from registry.engines.facts import EngineFacts
from registry.errors import Invalid
from registry.evaluation.verdicts import Outcome, add_up
from tests import effort, samples
from tests.engines.cases import CASES, facts_of

ALL_TEXT = [e for e in rulebook.engines().values() if e.kind == "text"]
PLAIN = facts_of(CASES["plain"])


def codes(facts: EngineFacts | dict[str, Any], profile: str) -> list[str]:
    findings = engines.evaluate(facts, engines.profile(profile))
    return sorted(f.code.removeprefix("engine.") for f in findings if f.severity != "info")


def base_spec() -> bases.BaseSpec:
    files = samples.llama().files
    header = safetensors.read_bytes(files["model.safetensors"], file="model.safetensors")
    return bases.base_spec("tiny", json.loads(files["config.json"]), [header])


# ------------------------------------------------------------------------- profiles
@pytest.mark.parametrize(
    "text",
    ["vllm==0.32.0,max_lora_rank=32", "sglang==0.5.23,target_modules=q_proj+v_proj", "peft==0.21.2",
     "vllm==0.33.0,enable_mixed_moe_lora_format=true", "llama.cpp==2026.10", "llama.cpp==b5000"],
)  # fmt: skip
def test_a_profile_prints_as_it_is_written(text: str) -> None:
    assert str(engines.profile(text)) == text
    assert engines.profile(str(engines.profile(text))) == engines.profile(text)


def test_versions_may_be_written_as_their_makers_do() -> None:
    assert str(engines.profile("vllm==v0.33.0")) == "vllm==0.33.0"
    finding = engines.evaluate(PLAIN, engines.profile("llama.cpp==b5000"))[-1]
    assert finding.severity == "unknown"
    assert "llama.cpp b5000 has not been examined (examined: its state of 2026.10)" in finding.message


def test_a_setting_at_its_default_is_not_printed() -> None:
    assert str(engines.profile("vllm==0.32.0,max_lora_rank=16")) == "vllm==0.32.0"


def test_a_hosted_service_needs_no_version() -> None:
    assert engines.profile("fireworks").version


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("vllm", "needs a version"),
        ("vlm==0.32.0", "known engines"),
        ("vllm=0.32.0", "is not 'engine==version"),
        ("vllm==0.32.0,max_lora_rank=33", "must be one of 1, 8, 16"),
        ("vllm==0.32.0,max_lora_rank=many", "must be a whole number"),
        ("vllm==0.32.0,max_lora_rank", "its settings"),
        ("vllm==0.32.0,rank=8", "its settings"),
        ("vllm==0.32.0,target_modules=a b", "names joined by '+'"),
        ("vllm==0.33.0,enable_mixed_moe_lora_format=yes", "true or false"),
        ("", "is not"),
        ("v" * 500, "is not"),
        ("vllm==0.32.0;rm", "is not"),
        ("../vllm==0.32.0", "is not"),
    ],
)
def test_a_wrong_profile_is_refused_with_what_is_possible(text: str, part: str) -> None:
    with pytest.raises(Invalid) as caught:
        engines.profile(text)
    assert caught.value.code == "SETTING_INVALID"
    assert part in caught.value.detail


# ------------------------------------------------------------------------- verdicts
@pytest.mark.parametrize("engine", [e.name for e in ALL_TEXT if not e.from_documentation])
def test_a_plain_adapter_passes_on_every_examined_engine(engine: str) -> None:
    version = rulebook.engine(engine).examined[-1]
    findings = engines.evaluate(PLAIN, engines.profile(f"{engine}=={version}"))
    doubted = {"ollama": ["unknown"]}  # its code re-orders lora_a for q and k, and nobody has run it here
    assert [finding.severity for finding in findings] == doubted.get(engine, [])


@pytest.mark.parametrize("engine", [e.name for e in ALL_TEXT if e.from_documentation])
def test_what_only_documentation_says_is_never_better_than_a_warning(engine: str) -> None:
    assert (
        add_up(engines.evaluate(PLAIN, engines.profile(f"{engine}=={rulebook.engine(engine).examined[-1]}"))) == "warn"
    )


@pytest.mark.parametrize(
    ("case", "profile", "expected"),
    [
        ("lora-bias", "vllm==0.30.0", ["vllm.lora_bias"]),
        ("lora-bias", "vllm==0.31.0", ["vllm.lora_bias"]),
        ("rank-pattern", "vllm==0.31.0", ["vllm.rank_pattern"]),
        ("rank-pattern", "vllm==0.32.0", []),
        ("saved-score", "vllm==0.30.0", ["vllm.saved_heads"]),
        ("saved-score", "vllm==0.31.0", ["vllm.saved_heads"]),
        ("saved-score", "vllm==0.31.0,classify=true", []),
        ("rank-64", "vllm==0.33.0", ["vllm.rank"]),
        ("rank-64", "vllm==0.33.0,max_lora_rank=64", []),
        ("rank-64", "fireworks", ["fireworks.documentation"]),
        ("all-linear", "vllm==0.33.0,target_modules=q_proj+v_proj", ["vllm.target_filter"]),
        ("all-linear", "sglang==0.5.23,target_modules=all", []),
        ("all-linear", "sglang==0.5.23,target_modules=q_proj", ["sglang.target_filter"]),
        ("rslora", "sglang==0.5.23", ["sglang.rslora"]),
        ("rslora", "llama.cpp", ["llama_cpp.rslora"]),
        ("rslora", "vllm==0.28.0", []),
        ("dora", "tensorrt-llm", []),
        ("some-layers", "lorax", ["lorax.partial_layers"]),
        ("some-layers", "vllm==0.28.0", []),
        ("q-only", "sglang==0.5.23", ["sglang.q_without_v"]),
        ("float8", "vllm==0.33.0", []),
        ("float8", "sglang==0.5.23", ["sglang.float8"]),
        ("wrong-prefix", "peft==0.21.2", ["peft.prefix"]),
    ],
)
def test_each_engine_has_its_own_truth(case: str, profile: str, expected: list[str]) -> None:
    assert codes(facts_of(CASES[case]), profile) == expected


def test_lora_bias_is_refused_silently_mistaken_and_refused_again() -> None:
    effects = [
        engines.evaluate(facts_of(CASES["lora-bias"]), engines.profile(f"vllm=={version}"))[0].expected
        for version in rulebook.engine("vllm").examined
    ]
    assert effects == ["refuses"] * 3 + ["wrong_output"] + ["refuses"] * 2


@pytest.mark.parametrize("version", ["0.27.1", "0.34.0", "1.0"])
def test_an_unexamined_version_is_unknown(version: str) -> None:
    assert add_up(engines.evaluate(PLAIN, engines.profile(f"vllm=={version}"))) == Outcome.UNKNOWN


def test_an_unexamined_version_is_evaluated_by_the_rules_of_the_nearest_one() -> None:
    older, newer = (
        "\n".join(finding.message for finding in engines.evaluate(facts_of(CASES["lora-bias"]), engines.profile(text)))
        for text in ("vllm==0.1.0", "vllm==9.0")
    )
    examined = rulebook.engine("vllm").examined
    assert f"vLLM 0.1.0 would refuse it by the rules of {examined[0]}: " in older
    assert f"vLLM 9.0 would refuse it by the rules of {examined[-1]}: " in newer


@pytest.mark.parametrize("profile", ["vllm==0.27.0", "vllm==0.28", "sglang==0.5.3"])
def test_a_version_before_the_examined_ones_has_the_classes_of_the_first(profile: str) -> None:
    findings = engines.evaluate(EngineFacts(base_architecture="LlamaForCausalLM"), engines.profile(profile))
    assert [f.code.rpartition(".")[2] for f in findings] == ["version"] * (profile != "vllm==0.28")


def test_a_patch_release_follows_the_version_before_it() -> None:
    assert codes(facts_of(CASES["pissa"]), "vllm==0.31.2") == codes(facts_of(CASES["pissa"]), "vllm==0.31.0")


def test_an_unexamined_property_is_unknown() -> None:
    findings = engines.evaluate(facts_of(CASES["rslora"]), engines.profile("together"))
    assert "engine.together.rslora" in [f.code for f in findings if f.severity == "unknown"]


def test_an_adapter_that_does_not_fit_its_base_passes_nowhere() -> None:
    facts = PLAIN.model_copy(update={"compat": "fail"})
    for engine in ALL_TEXT:
        profile = engines.profile(f"{engine.name}=={engine.examined[-1]}")
        assert add_up(engines.evaluate(facts, profile)) in (Outcome.FAIL, Outcome.UNKNOWN), engine.name


def test_an_adapter_that_headers_cannot_compare_with_its_base_passes_nowhere() -> None:
    facts = PLAIN.model_copy(update={"compat": "unknown"})
    for engine in ALL_TEXT:
        outcome = add_up(engines.evaluate(facts, engines.profile(f"{engine.name}=={engine.examined[-1]}")))
        assert outcome is Outcome.UNKNOWN, engine.name


def test_facts_read_back_from_json_give_equal_findings() -> None:
    for files in CASES.values():
        facts = facts_of(files)
        stored = json.loads(json.dumps(engine_facts.to_stored(facts)))
        for engine in ALL_TEXT:
            profile = engines.profile(f"{engine.name}=={engine.examined[0]}")
            assert engines.evaluate(stored, profile) == engines.evaluate(facts, profile)


@pytest.mark.parametrize(
    ("architecture", "paths", "is_multimodal"),
    [
        ("T5ForConditionalGeneration", ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.0.v"], False),
        ("BartForConditionalGeneration", ["model.encoder.layers.0.fc1", "model.decoder.layers.0.fc1"], False),
        ("WhisperForConditionalGeneration", ["model.encoder.conv1", "model.decoder.layers.0.fc1"], False),
        ("Gemma3ForConditionalGeneration", ["model.vision_tower.encoder.fc1", "model.language_model.layers.0.q"], True),
        ("T5Gemma2ForConditionalGeneration", ["model.encoder.vision_tower.fc1", "model.decoder.layers.0.q"], True),
        ("Pix2StructForConditionalGeneration", ["encoder.embeddings.patch_projection", "decoder.layer.0.q"], True),
        ("LlavaForConditionalGeneration", [], True),
    ],
)
def test_encoder_decoders_of_one_text_model_are_not_multimodal(
    architecture: str, paths: list[str], is_multimodal: bool
) -> None:
    modules = {path: ModuleShape(kind="linear", in_features=64, out_features=64) for path in paths}
    base = base_spec().model_copy(update={"architecture": architecture, "modules": modules})
    facts = PLAIN.model_copy(update=engine_facts.of_base(base))
    assert codes(facts, "peft==0.21.2") == (["peft.multimodal"] if is_multimodal else [])


def test_facts_of_another_registry_are_unknown() -> None:
    stored = engine_facts.to_stored(PLAIN)
    assert codes(stored, "vllm==0.33.0") == []
    assert codes({**stored, "facts_version": 0}, "vllm==0.33.0") == ["vllm.facts"]
    assert codes({}, "vllm==0.33.0") == ["vllm.facts"]


def test_names_without_the_prefix_of_the_head_work_in_vllm_as_a_pooling_model_only() -> None:
    facts = PLAIN.model_copy(update={"headless_names": True, "base_under_model": True})
    for setting, expected in (("", ["vllm.headless_names"]), (",pooling=true", []), (",classify=true", [])):
        assert codes(facts, f"vllm==0.33.0{setting}") == expected
    assert codes(facts.model_copy(update={"base_headless": True}), "vllm==0.33.0") == []
    other = facts.model_copy(update={"base_under_model": False})
    assert codes(other, "vllm==0.33.0,pooling=true") == codes(other, "vllm==0.33.0") == ["vllm.headless_names"]
    assert codes(facts, "sglang==0.5.23") == codes(facts, "peft==0.21.2") == []


def test_stored_facts_are_small() -> None:
    assert len(json.dumps(engine_facts.to_stored(PLAIN))) < 400


def test_new_fields_raise_the_version_of_stored_facts() -> None:
    """Stored facts without a new field would be read as if it were at its default: raise FACTS_VERSION, then this."""
    fields = ",".join(sorted(EngineFacts.model_fields))
    assert (engine_facts.FACTS_VERSION, Digest.of(fields.encode())) == (
        1,
        "sha256:041169821aa39645919f8c666d6e75fa3b49766fec15341e4ecfa2616b5b0c0b",
    )


def test_a_verdict_says_profile_base_and_outcome() -> None:
    base = base_spec()
    stored = engine_facts.to_stored(facts_of(CASES["rank-64"]))
    profile = engines.profile("vllm==0.33.0,max_lora_rank=32")
    verdict = engines.verdict(stored, profile, subject=Digest.of(b"x"), base=base, compat=Outcome.PASS, registry="1.0")
    assert (verdict.check, verdict.outcome, verdict.profile) == (
        "engine",
        Outcome.FAIL,
        "vllm==0.33.0,max_lora_rank=32",
    )
    assert (verdict.base, verdict.base_fingerprint) == (base.name, base.fingerprint)


def test_a_verdict_from_stored_facts_is_a_few_thousand_lines_of_work() -> None:
    stored = engine_facts.to_stored(facts_of(CASES["all-linear"]))
    profile = engines.profile("vllm==0.33.0,max_lora_rank=32")
    engines.evaluate(stored, profile)
    assert effort.lines(lambda: engines.evaluate(stored, profile)) < 10_000


def test_a_text_adapter_is_not_for_an_image_engine() -> None:
    assert codes(PLAIN, "diffusers==0.42.1") == ["diffusers.kind"]


@pytest.mark.parametrize(
    ("format_name", "dora", "comfyui"),
    [
        ("diffusers", False, []),
        ("diffusers", True, ["comfyui.image_magnitudes"]),
        ("kohya", False, []),
        ("kohya", True, []),
        ("lycoris", False, []),
        ("comfy", False, []),
        ("xlabs", False, ["comfyui.image_xlabs"]),
        ("unknown", False, ["comfyui.kind"]),
    ],
)
def test_comfyui_is_judged_by_the_format(format_name: str, dora: bool, comfyui: list[str]) -> None:
    problems = ("image.dora_scale",) if dora and format_name == "kohya" else ()
    file = FileFacts(format=formats.named(format_name), method="lora", family="flux", has_dora=dora, problems=problems)
    assert codes(engine_facts.of_file(file), "comfyui") == comfyui


@pytest.mark.parametrize("version", ["0.42.1", "0.30.0", "1.0.0"])
def test_before_a_worker_has_loaded_it_the_verdict_of_diffusers_is_unknown(version: str) -> None:
    facts = engine_facts.of_file(FileFacts(format=formats.KOHYA, method="lora", family="flux"))
    (finding,) = engines.evaluate(facts, engines.profile(f"diffusers=={version}"))
    assert (finding.severity, finding.code) == ("unknown", "engine.diffusers.not_loaded")
    message = f"no worker has loaded this file with diffusers {version} yet, so what it takes is not known"
    assert finding.message == message


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"format": "unknown"}, "image_unknown"),
        ({"problems": ("lora.pair_incomplete",), "compat": "fail"}, "image_half"),
        ({"other_family": True, "compat": "fail"}, "image_other_family"),
        ({"compat": "fail"}, "image_mismatch"),
        ({"weights": "fail"}, "image_not_finite"),
    ],
)
def test_what_a_header_proves_needs_no_worker(fields: dict[str, object], code: str) -> None:
    facts = EngineFacts(kind="image", format="diffusers").model_copy(update=fields)
    assert codes(facts, "diffusers==0.42.1") == [f"diffusers.{code}"]


# ------------------------------------------------------------------------- settings
def test_one_large_adapter_raises_the_rank_of_every_slot() -> None:
    fleet = {"acme/a": PLAIN, "acme/b": facts_of(CASES["rank-64"]), "acme/c": facts_of(CASES["rank-16"])}
    settings = engine_settings.settings_for("vllm==0.33.0", fleet, base_spec())
    assert (settings.rank_limit, settings.rank_limit_without_largest, settings.raised_by) == (64, 16, ("acme/b",))
    assert settings.bytes_per_slot == 4 * settings.bytes_per_slot_without_largest
    assert settings.flags == ("--enable-lora", "--max-lora-rank 64", "--max-loras 3", "--max-cpu-loras 3")


def test_an_adapter_that_no_setting_helps_is_left_out() -> None:
    fleet = {"acme/a": PLAIN, "acme/dora": facts_of(CASES["dora"])}
    settings = engine_settings.settings_for("vllm==0.33.0", fleet, base_spec())
    assert (settings.left_out, settings.slots) == (("acme/dora",), 1)


def test_the_limit_is_one_that_the_engine_offers() -> None:
    facts = PLAIN.model_copy(update={"max_rank": 17, "config_rank": 17})
    assert engine_settings.settings_for("vllm==0.33.0", {"a/b": facts}, base_spec()).rank_limit == 32
    assert engine_settings.settings_for("sglang==0.5.23", {"a/b": facts}, base_spec()).rank_limit == 17


def test_a_slot_costs_rank_times_both_sides_of_every_module() -> None:
    sides = 4 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 128) * 3) + 2 * (64 + 512)
    assert engine_settings.slot_bytes(base_spec(), 16) == 16 * 4 * sides


def test_an_empty_fleet_has_an_answer() -> None:
    settings = engine_settings.settings_for("vllm==0.33.0", {}, base_spec())
    assert (settings.adapters, settings.max_rank, settings.slots, settings.flags) == (0, 0, 1, ())


def test_an_adapter_whose_verdict_is_unknown_counts_and_is_named() -> None:
    fleet = {"acme/a": PLAIN, "acme/experts": PLAIN.model_copy(update={"fused_experts": True, "max_rank": 64})}
    settings = engine_settings.settings_for("vllm==0.33.0", fleet, base_spec())
    assert (settings.unknown, settings.rank_limit, settings.left_out) == (("acme/experts",), 64, ())


def test_settings_of_pages_combine_to_those_of_all_adapters() -> None:
    ranks = {"acme/a": 8, "acme/b": 64, "acme/c": 16, "acme/d": 64, "acme/e": 32}
    fleet: dict[str, EngineFacts] = {
        name: PLAIN.model_copy(update={"max_rank": rank, "config_rank": rank}) for name, rank in ranks.items()
    } | {"acme/f": facts_of(CASES["dora"]), "acme/g": PLAIN.model_copy(update={"fused_experts": True})}
    for profile in ("vllm==0.33.0", "sglang==0.5.23"):
        whole = engine_settings.settings_for(profile, fleet, base_spec(), slots=3)
        for size in range(1, len(fleet) + 1):
            pages = [dict(list(fleet.items())[start : start + size]) for start in range(0, len(fleet), size)]
            parts = [engine_settings.settings_for(profile, page, base_spec()) for page in pages]
            assert engine_settings.combine(parts, slots=3) == whole
    assert whole.raised_by == ("acme/b", "acme/d")


def test_adapters_of_one_rank_raise_nothing() -> None:
    alike = [engine_settings.settings_for("vllm==0.33.0", {name: PLAIN}, base_spec()) for name in ("a/b", "a/c")]
    assert engine_settings.combine(alike).raised_by == ()


def test_an_engine_that_extends_another_has_its_rules_under_its_own_source() -> None:
    tgi, lorax = rulebook.engine("tgi"), rulebook.engine("lorax")
    assert {(r.property, r.message) for r in tgi.rules} == {(r.property, r.message) for r in lorax.rules}
    assert not [r for r in (*lorax.rules, *lorax.works) if "text_generation_server" in r.source]
    assert rulebook.digest("lorax") != rulebook.digest("tgi")
