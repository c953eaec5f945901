"""PEFT loads a base as the class for an adapter's task: paths with and without the prefix of a class with a head."""

from __future__ import annotations

from typing import Any

import pytest

from registry import compat
from registry.bases import BaseSpec
from tests import samples
from tests.domain.specs import base_spec, evaluate, lora_spec
from tests.domain.test_compat import codes

LLAMA = samples.llama()
LLAMA_SPEC = base_spec(LLAMA)

MAPPED = {"auto_mapping": {"base_model_class": "LlamaModel", "parent_library": "transformers.models.llama"}}


def unprefixed(tensors: dict[str, samples.Tensor]) -> dict[str, samples.Tensor]:
    """The names that PEFT writes for a LlamaModel: they lack the prefix of the class with a head."""
    return {name.replace(".model.model.", ".model."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(("config", "is_taken"), [
    ({"task_type": "FEATURE_EXTRACTION"}, True), ({"task_type": None, **MAPPED}, True), ({"task_type": None}, False),
    ({"task_type": "CAUSAL_LM"}, False), ({"task_type": "SEQ_CLS", "modules_to_save": ["score"]}, False),
])  # fmt: skip
def test_names_without_the_prefix_of_the_head_fit_where_peft_loads_a_model_without_a_head(
    config: dict[str, Any], is_taken: bool
) -> None:
    adapter = lora_spec(samples.lora(LLAMA, config=config, change=unprefixed))
    assert ("compat.module_unknown" not in codes(compat.check_fit(adapter, LLAMA_SPEC))) is is_taken


def test_names_without_the_prefix_are_compared_with_the_modules_below_it() -> None:
    config = {"task_type": "FEATURE_EXTRACTION"}
    for base, code in ((samples.llama("tiny-llama", hidden=96), "compat.shape"),
                       (samples.llama("tiny-llama", layers=6), "compat.module_missing")):  # fmt: skip
        assert code in codes(evaluate(samples.lora(LLAMA, config=config, change=unprefixed), base))
    beyond = samples.lora(
        LLAMA, config=config, change=lambda t: {n.replace("q_proj", "qq_proj"): v for n, v in unprefixed(t).items()}
    )
    assert "compat.module_unknown" in codes(evaluate(beyond, LLAMA))


@pytest.mark.parametrize(("prefix", "head", "severity"), [
    ("model.", True, None), ("", True, "unknown"), ("model.", False, "error"),
])  # fmt: skip
def test_a_classifier_on_a_base_without_a_head_has_the_prefix_and_its_head(
    prefix: str, head: bool, severity: str | None
) -> None:
    whole: dict[str, samples.Tensor] = {"base_model.model.score.weight": ("F32", (2, 64), None)} if head else {}
    adapter = lora_spec(
        samples.lora(
            LLAMA,
            config={"task_type": "SEQ_CLS", "modules_to_save": ["score"]},
            change=lambda t: {n.replace(".model.model.", f".model.{prefix}"): v for n, v in t.items()} | whole,
        )
    )
    bare = {path.removeprefix("model."): module for path, module in LLAMA_SPEC.modules.items() if path != "lm_head"}
    base = LLAMA_SPEC.model_copy(update={"architecture": "LlamaModel", "modules": bare})
    assert {f.severity for f in compat.check_fit(adapter, base)} - {"warning"} == ({severity} if severity else set())


def with_head(tensors: dict[str, samples.Tensor]) -> dict[str, samples.Tensor]:
    return tensors | {"base_model.model.score.weight": ("F32", (2, 64), None)}


def test_a_language_model_whose_class_ends_in_head_model_keeps_its_paths() -> None:
    base = samples.gpt2()
    config = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    findings = evaluate(samples.lora(base, targets=["c_attn"], config=config, change=with_head), base)
    assert {f.code for f in findings} == {"compat.other_task"}, "its head is used instead of the base's"


def test_the_prefix_of_a_classifier_is_found_beside_lora_on_its_head() -> None:
    head: dict[str, samples.Tensor] = {
        "base_model.model.classifier.dense.lora_A.weight": ("F32", (8, 64), None),
        "base_model.model.classifier.dense.lora_B.weight": ("F32", (64, 8), None),
        "base_model.model.classifier.out_proj.weight": ("F32", (2, 64), None),
    }
    config = {"task_type": "SEQ_CLS", "target_modules": ["q_proj", "v_proj", "dense"], "modules_to_save": ["out_proj"]}
    adapter = lora_spec(samples.lora(LLAMA, config=config, change=lambda tensors: tensors | head))
    bare = {path.removeprefix("model."): module for path, module in LLAMA_SPEC.modules.items() if path != "lm_head"}
    base = LLAMA_SPEC.model_copy(update={"architecture": "LlamaModel", "modules": bare})
    unsure = {f.location for f in compat.check_fit(adapter, base) if f.severity in ("error", "unknown")}
    assert unsure == {"classifier.dense"}, "the base has no such module, and the rest is compared"


def test_names_of_one_of_two_stacks_are_no_names_of_a_model_without_its_head() -> None:
    """Which of both would be chance."""
    adapter = lora_spec(samples.lora(LLAMA, config={"task_type": "FEATURE_EXTRACTION"}, change=unprefixed))
    layers = {path.removeprefix("model."): m for path, m in LLAMA_SPEC.modules.items() if path.startswith("model.")}
    for stacks, is_refused in ((("encoder",), False), (("encoder", "decoder"), True)):
        modules = {f"{stack}.{path}": module for stack in stacks for path, module in layers.items()}
        base = LLAMA_SPEC.model_copy(update={"modules": modules})
        assert ("compat.module_unknown" in codes(compat.check_fit(adapter, base))) is is_refused


def nested(base: BaseSpec) -> BaseSpec:
    """The text model inside a multimodal one, as a library builds it."""
    modules = {path.replace("model.", "model.language_model.", 1): module for path, module in base.modules.items()}
    return base.model_copy(update={"modules": modules, "names_known": True})


@pytest.mark.parametrize(("older", "wrong", "expected"), [
    ("language_model.model.", False, {"unknown compat.layout_older"}),
    ("language_model.model.", True, {"unknown compat.layout_older", "error compat.shape"}),
    ("model.", False, {"error compat.module_unknown", "error compat.module_missing"}),
])  # fmt: skip
def test_the_layout_of_an_older_library_is_left_to_peft_and_its_shapes_are_compared(
    older: str, wrong: bool, expected: set[str]
) -> None:
    trained_on = samples.llama("tiny-llama", hidden=96) if wrong else LLAMA
    adapter = lora_spec(
        samples.lora(
            trained_on, change=lambda t: {n.replace(".model.model.", f".model.{older}"): v for n, v in t.items()}
        )
    )
    found = compat.check_fit(adapter, nested(LLAMA_SPEC))
    assert {f"{f.severity} {f.code}" for f in found if f.severity in ("error", "unknown")} == expected


@pytest.mark.parametrize(("targets", "copied", "expected"), [
    (["wte", "lm_head", "c_attn"], "wte", {"compat.repeats_base"}),
    (["wte", "lm_head", "c_attn"], "h.0.attn.c_attn", {"compat.overwrites_base"}),
    (["wte", "c_attn"], "wte", {"compat.overwrites_base"}),
])  # fmt: skip
def test_peft_copies_an_embedding_of_any_name_beside_a_target_that_it_knows(
    targets: list[str], copied: str, expected: set[str]
) -> None:
    base = samples.gpt2()
    module = base_spec(base).modules[f"transformer.{copied}"]
    shape = (module.in_features, module.out_features)
    copy: dict[str, samples.Tensor] = {f"base_model.model.transformer.{copied}.base_layer.weight": ("F32", shape, None)}
    files = samples.lora(base, targets=["c_attn"], config={"target_modules": targets}, change=lambda t: {**t, **copy})
    about_copies = {"compat.repeats_base", "compat.overwrites_base"}
    assert {finding.code for finding in evaluate(files, base)} & about_copies == expected
