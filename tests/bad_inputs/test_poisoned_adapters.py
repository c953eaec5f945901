"""Attack: an adapter whose tensors rewrite the base, or whose content contradicts its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from registry import compat
from registry.adapters import peft, safetensors
from registry.adapters.peft import config
from registry.evaluation.verdicts import Outcome, add_up
from registry.findings import Finding
from tests import effort, samples
from tests.domain.specs import base_spec, evaluate

BASE = samples.llama()
AT = "base_model.model.model.layers.0.self_attn.q_proj"
Change = Callable[[dict[str, samples.Tensor]], Mapping[str, samples.Tensor]]


def _adding(name: str, shape: tuple[int, ...]) -> Change:
    return lambda t: {**t, name: ("F32", shape, None)}


def _only(name: str) -> Change:
    return lambda _: {name: ("F32", (1,), None)}


def _without(*parts: str) -> Change:
    return lambda t: {k: v for k, v in t.items() if not all(p in k for p in parts)}


def _renaming(old: str, new: str) -> Change:
    return lambda t: {k.replace(old, new): v for k, v in t.items()}


def _reshaping(name: str, shape: tuple[int, ...], dtype: str = "F32") -> Change:
    return lambda t: {**t, name: (dtype, shape, None)}


CASES: dict[str, tuple[Change, dict[str, Any], str]] = {
    "27-a-without-b": (_without("layers.0.self_attn.q_proj.lora_B"), {}, "lora.pair_incomplete"),
    "27-b-without-a": (_without("layers.0.self_attn.q_proj.lora_A"), {}, "lora.pair_incomplete"),
    "28-rank-is-not-r": (lambda t: t, {"r": 4}, "lora.rank_differs_from_config"),
    "28-rank-pattern": (
        lambda t: t, {"rank_pattern": {"layers.0.self_attn.q_proj": 4}}, "lora.rank_differs_from_config"
    ),
    "29-transposed": (_reshaping(f"{AT}.lora_A.weight", (64, 8)), {}, "lora.rank_differs"),
    "29-a-vector": (_reshaping(f"{AT}.lora_A.weight", (8,)), {}, "lora.shape_invalid"),
    "31-integers": (_reshaping(f"{AT}.lora_A.weight", (8, 64), "I32"), {}, "lora.dtype_refused"),
    "31-bool": (_reshaping(f"{AT}.lora_A.weight", (8, 64), "BOOL"), {}, "lora.dtype_refused"),
    "32-lm-head": (_adding("base_model.model.lm_head.weight", (512, 64)), {}, "compat.overwrites_base"),
    "32-base-layer": (_adding(f"{AT}.base_layer.weight", (64, 64)), {}, "compat.overwrites_base"),
    "32-norm": (_adding("base_model.model.model.norm.weight", (64,)), {}, "compat.overwrites_base"),
    "32-undeclared-bias": (_adding(f"{AT}.base_layer.bias", (64,)), {}, "compat.overwrites_base"),
    "32-bare-base-name": (_adding("model.norm.weight", (64,)), {}, "lora.prefix_invalid"),
    "34-layer-beyond-the-base": (
        lambda t: {**t, **{k.replace("layers.3", "layers.9"): v for k, v in t.items() if "layers.3" in k}},
        {}, "compat.module_unknown"),
    "35-out-features": (_reshaping(f"{AT}.lora_B.weight", (63, 8)), {}, "compat.shape"),
    "35-in-features": (_reshaping(f"{AT}.lora_A.weight", (8, 96)), {}, "compat.shape"),
    "36-saved-module-absent": (lambda t: t, {"modules_to_save": ["lm_head"]}, "compat.saved_module_absent"),
    "missing-layer": (_without(".layers.2."), {}, "compat.module_missing"),
    "target-not-in-file": (lambda t: t, {"target_modules": ["q_proj", "v_proj", "o_proj"]}, "compat.module_missing"),
    "file-not-in-targets": (lambda t: t, {"target_modules": ["q_proj"]}, "compat.module_not_targeted"),
    "targets-match-nothing": (lambda t: t, {"target_modules": ["query_key_value"]}, "compat.targets_match_nothing"),
    "adapter-name-inside": (_renaming(".weight", ".default.weight"), {}, "lora.adapter_name_inside"),
    "torch-compile": (_renaming("base_model.model.", "base_model.model._orig_mod."), {}, "lora.compiled_prefix"),
    "wrong-prefix": (_renaming("base_model.model.model.", "transformer."), {}, "lora.prefix_invalid"),
    "no-prefix": (_renaming("base_model.model.", ""), {}, "lora.prefix_invalid"),
    "zero3": (_reshaping(f"{AT}.lora_A.weight", (0,)), {}, "lora.tensor_empty"),
    "alpha-zero": (lambda t: t, {"lora_alpha": 0}, "lora.alpha_not_positive"),
    "alpha-zero-by-pattern": (
        lambda t: t, {"alpha_pattern": {"q_proj": 0, "v_proj": 0}}, "lora.alpha_not_positive"),
    "dora-without-magnitudes": (lambda t: t, {"use_dora": True}, "lora.magnitude_absent"),
    "magnitudes-without-dora": (_adding(f"{AT}.lora_magnitude_vector", (64,)), {}, "lora.magnitude_without_dora"),
    "magnitude-size": (
        lambda t: {**t, **{k.replace("lora_A.weight", "lora_magnitude_vector"): ("F32", (7,), None)
                           for k in t if "lora_A" in k}}, {"use_dora": True}, "compat.shape"),
    "unknown-tensor": (_adding(f"{AT}.lora_C.weight", (8, 8)), {}, "lora.tensor_unknown"),
    "another-method": (_adding(f"{AT}.hada_w1_a", (64, 8)), {}, "lora.tensor_unknown"),
    "token-beyond-vocabulary": (lambda t: t, {"alora_invocation_tokens": [5, 512]}, "compat.token_unknown"),
    "tokens-absent": (lambda t: t, {"trainable_token_indices": {"embed_tokens": [1]}}, "compat.tokens_absent"),
    "vocabulary-resized": (
        _adding("base_model.model.lm_head.weight", (520, 64)), {"modules_to_save": ["lm_head"]},
        "compat.vocabulary_differs"),
    "saved-module-shape": (
        _adding("base_model.model.lm_head.weight", (512, 65)), {"modules_to_save": ["lm_head"]}, "compat.shape"),
    "no-rank-beside-another-rank": (
        lambda t: {name: (dtype, tuple(4 if side == 8 else side for side in shape), None)
                   for name, (dtype, shape, _) in t.items()},
        {"r": None}, "lora.rank_differs_from_config"),
    **{f"null-{field}": (lambda t: t, {field: None}, "config.not_loadable") for field in (
        "r", "lora_alpha", "lora_dropout", "bias", "rank_pattern", "alpha_pattern")},
    **{f"dropout-{value}": (lambda t: t, {"lora_dropout": value}, "config.not_loadable") for value in (
        7, 1.5, 1, -0.1, "0.1", True)},
    **{f"initialization-{value}": (lambda t: t, {"init_lora_weights": value}, "config.not_loadable") for value in (
        "hello", "PiSSA", "pissaX", "pissa_niter_x", "true", "/etc/passwd")},
    "empty-bias": (lambda t: t, {"bias": ""}, "config.not_loadable"),
    "nothing-inside": (_only("base_model.model.x"), {}, "lora.no_modules"),
}  # fmt: skip


@pytest.mark.security
@pytest.mark.parametrize("name", CASES)
def test_a_poisoned_adapter_fails_with_its_finding(name: str) -> None:
    change, fields, code = CASES[name]
    findings = evaluate(samples.lora(BASE, change=change, config=fields), BASE)
    assert add_up(findings) is Outcome.FAIL
    assert code in {f.code for f in findings if f.severity == "error"}, [f.message for f in findings]
    finding = next(f for f in findings if f.code == code)
    assert finding.location
    assert finding.message


@pytest.mark.parametrize(
    "fields",
    [{"lora_alpha": -16}, {"alpha_pattern": {"q_proj": 0}}, {"alpha_pattern": {"v_proj": -1}},
     {"lora_alpha": 0, "alpha_pattern": {"q_proj": 8}}],
)  # fmt: skip
def test_an_alpha_that_is_not_positive_is_a_warning_where_the_adapter_acts(fields: dict[str, Any]) -> None:
    """PEFT and vLLM load it and multiply by it."""
    findings = evaluate(samples.lora(BASE, config=fields), BASE)
    assert {(f.severity, f.code) for f in findings} == {("warning", "lora.alpha_not_positive")}
    assert add_up(findings) is Outcome.WARN


def test_ten_thousand_unexpected_tensors_are_a_few_findings() -> None:
    extra = {f"base_model.model.x{i}.weight": ("F32", (1,), bytes(4)) for i in range(10_000)}
    findings: list[Finding] = evaluate(samples.lora(BASE, change=lambda t: {**t, **extra}), BASE)
    assert len(findings) < 20
    assert any("(10000 tensors)" in f.message for f in findings)


def test_a_finding_never_breaks_on_what_an_adapter_contains() -> None:
    name = "base_model.model." + "x" * 480 + ".lora_A.weight"
    spec = peft.describe(
        config.read_config(samples.lora(BASE)[samples.CONFIG]),
        safetensors.read_bytes(samples.safetensors({name: ("F32", (8, 64), None)}), file=samples.WEIGHTS),
    )
    assert add_up(spec.findings) is Outcome.FAIL
    assert compat.check_fit(spec, base_spec(BASE))


def test_many_announced_parameters_and_many_tensors_do_not_multiply() -> None:
    def run(count: int) -> None:
        names = [f"own{n:04d}.w" for n in range(count)]
        pairs = {f"base_model.model.m{n}.x.lora_A.weight": ("F32", (8, 4), None) for n in range(count)}
        evaluate(samples.lora(BASE, config={"target_parameters": names}, change=lambda t: {**t, **pairs}), BASE)

    run(1)
    assert effort.lines(lambda: run(400)) < 3 * effort.lines(lambda: run(200))


def test_many_names_of_trained_tokens_and_many_rows_do_not_multiply() -> None:
    def run(count: int) -> None:
        names = {f"own{n:04d}": [1] for n in range(count)}
        rows = {
            f"base_model.model.m{n}.embed_tokens.token_adapter.trainable_tokens_delta": ("F32", (1, 64), None)
            for n in range(count)
        }
        evaluate(samples.lora(BASE, config={"trainable_token_indices": names}, change=lambda t: {**t, **rows}), BASE)

    run(1)
    assert effort.lines(lambda: run(800)) < 2.5 * effort.lines(lambda: run(400))


@pytest.mark.security
@pytest.mark.parametrize("field", ["layers_pattern", "modules_to_save"])
def test_many_names_in_a_configuration_and_many_modules_do_not_multiply(field: str) -> None:
    """A plan evaluates headers: 100 KB of names kept a server busy for minutes."""

    def run(count: int) -> None:
        base = samples.llama(layers=max(1, count // 20))
        fields = {field: [f"own{n:05d}" for n in range(count)], "layers_to_transform": [1], "ensure_weight_tying": True}
        saved = {f"base_model.model.m{n}.x.weight": ("F32", (4, 4), None) for n in range(count)}
        evaluate(samples.lora(base, config=fields, change=lambda t: {**t, **saved}), base)

    run(1)
    assert effort.lines(lambda: run(800)) < 2.5 * effort.lines(lambda: run(400))
