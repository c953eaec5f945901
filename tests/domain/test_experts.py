"""Adapters of mixtures of experts: fused by transformers 5 under PEFT's own names, or named one by one by version 4."""

from __future__ import annotations

import json
from typing import Any

import pytest

from registry import bases, compat, engines
from registry.adapters import peft, safetensors
from registry.adapters.peft import LoraSpec, config
from registry.bases import BaseSpec
from registry.engines import facts as engine_facts
from registry.findings import Finding
from tests import samples

HIDDEN, INNER, COUNT, LAYERS = 32, 16, 4, 2
SEVEN = [*samples.ATTENTION, "gate_proj", "up_proj", "down_proj"]
FUSED = {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj", "gate.weight"],
         "rank_pattern": {".*\\.gate_up_proj": 8}, "alpha_pattern": {".*\\.gate_up_proj": 16}}  # fmt: skip
"""What PEFT 0.21 makes of the targets q_proj, gate_proj, up_proj, down_proj and gate: a rank for each fused half."""

Shapes = dict[str, tuple[int, ...]]


def base(**config_fields: Any) -> BaseSpec:
    """A Qwen3-MoE: a file holds each expert by itself."""
    shapes: Shapes = {"model.embed_tokens.weight": (64, HIDDEN), "lm_head.weight": (64, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}.weight": (HIDDEN, HIDDEN) for name in samples.ATTENTION}
        shapes[f"{at}.mlp.gate.weight"] = (COUNT, HIDDEN)
        for expert in range(COUNT):
            shapes |= {f"{at}.mlp.experts.{expert}.{name}.weight": (INNER, HIDDEN) for name in ("gate_proj", "up_proj")}
            shapes[f"{at}.mlp.experts.{expert}.down_proj.weight"] = (HIDDEN, INNER)
    fields = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": HIDDEN,
              "num_hidden_layers": LAYERS, "num_attention_heads": 4, "vocab_size": 64, **config_fields}  # fmt: skip
    return bases.base_spec("moe", fields, [header(shapes)])


def header(shapes: Shapes) -> safetensors.Header:
    weights = samples.safetensors({name: ("F32", shape, None) for name, shape in shapes.items()})
    return safetensors.read_bytes(weights, file=samples.WEIGHTS)


def adapter(sizes: dict[str, tuple[int, int, int]], **fields: Any) -> LoraSpec:
    """Pairs for each layer: what follows the layer's number → (rows of A, inputs, outputs)."""
    shapes: Shapes = {}
    for layer in range(LAYERS):
        for path, (rows, inputs, outputs) in sizes.items():
            at = f"base_model.model.model.layers.{layer}.{path}"
            shapes |= {f"{at}.lora_A.weight": (rows, inputs), f"{at}.lora_B.weight": (outputs, rows)}
    written = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "moe", **fields}
    return peft.describe(config.read_config(json.dumps(written).encode()), header(shapes))


Q = {"self_attn.q_proj": (4, HIDDEN, HIDDEN)}
BLOCKS = {
    **Q,
    "mlp.gate": (4, HIDDEN, COUNT),
    "mlp.experts.base_layer": (8 * COUNT, HIDDEN, 2 * INNER),
    "mlp.experts": (4 * COUNT, INNER, HIDDEN),
}


def errors(spec: LoraSpec, on: BaseSpec | None = None) -> list[Finding]:
    return [f for f in compat.check_fit(spec, on or base()) if f.severity in ("error", "unknown")]


def test_experts_that_peft_fused_by_itself_fit_with_the_rank_and_scale_of_each_half() -> None:
    spec = adapter(BLOCKS, **FUSED)
    assert errors(spec) == []
    modules = {m.key: (m.kind, m.rank, m.scale) for m in spec.modules if ".layers.1." in m.path}
    assert modules == {
        "model.layers.1.self_attn.q_proj": ("linear", 4, 2.0),
        "model.layers.1.mlp.gate.weight": ("linear", 4, 2.0),
        "model.layers.1.mlp.experts.gate_up_proj": ("parameter", 8, 2.0),
        "model.layers.1.mlp.experts.down_proj": ("parameter", 4, 2.0),
    }


def test_the_halves_of_a_block_have_ranks_of_their_own_and_are_no_group_of_projections() -> None:
    facts = engine_facts.of_lora(adapter(BLOCKS, **FUSED))
    assert (facts.max_rank, facts.ranks_differ, facts.ranks_differ_in_group, facts.fused_experts) == (
        8,
        True,
        False,
        True,
    )


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"mlp.experts.base_layer": (8 * COUNT, HIDDEN, INNER)}, "compat.shape"),
        ({"mlp.experts": (4 * COUNT, HIDDEN, 2 * INNER)}, "compat.shape"),
        ({"mlp.experts": (4 * 3, INNER, HIDDEN)}, "compat.shape"),
        ({"mlp.gate": (4, HIDDEN, COUNT + 1)}, "compat.shape"),
        ({"mlp.experts": (6 * COUNT + 1, INNER, HIDDEN)}, "lora.rank_differs_from_config"),
    ],
)
def test_a_block_of_other_experts_does_not_fit(changed: dict[str, tuple[int, int, int]], code: str) -> None:
    assert code in {f.code for f in errors(adapter(BLOCKS | changed, **FUSED))}


@pytest.mark.parametrize("lost", ["mlp.experts.base_layer", "mlp.experts", "mlp.gate"])
def test_a_parameter_that_is_announced_and_absent_is_missed(lost: str) -> None:
    remaining = {path: sizes for path, sizes in BLOCKS.items() if path != lost}
    assert errors(adapter(remaining, **FUSED)) != []


def test_the_seven_projections_as_targets_mean_attention_where_the_experts_are_fused() -> None:
    attention = {f"self_attn.{name}": (4, HIDDEN, HIDDEN) for name in samples.ATTENTION}
    assert errors(adapter(attention, target_modules=SEVEN)) == []


def test_experts_named_one_by_one_are_left_to_peft_and_one_that_is_lost_is_missed() -> None:
    each = dict(Q)
    for expert in range(COUNT):
        each |= {f"mlp.experts.{expert}.{name}": (4, HIDDEN, INNER) for name in ("gate_proj", "up_proj")}
        each[f"mlp.experts.{expert}.down_proj"] = (4, INNER, HIDDEN)
    targets = {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]}
    whole = adapter(each, **targets)
    assert [(f.severity, f.code) for f in errors(whole)] == [("unknown", "compat.experts_fused")]
    facts = engine_facts.of_lora(whole, compat="unknown", base=base())
    assert [f.severity for f in engines.evaluate(facts, engines.profile("peft==0.21.2"))] == ["unknown"]
    del each["mlp.experts.2.up_proj"]
    assert {f.code for f in errors(adapter(each, **targets))} == {"compat.experts_fused", "compat.module_missing"}


def test_experts_that_are_stacked_are_refused_with_the_tool_that_unstacks_them() -> None:
    at = "base_model.model.model.layers.0.mlp.experts.w1"  # https://github.com/thinking-machines-lab/tinker-cookbook
    stacked = header({f"{at}.lora_A.weight": (1, 4, HIDDEN), f"{at}.lora_B.weight": (COUNT, INNER, 4)})
    written = {"peft_type": "LORA", "r": 4, "lora_alpha": 32, "target_modules": "all-linear"}
    spec = peft.describe(config.read_config(json.dumps(written).encode()), stacked)
    assert any("build_lora_adapter" in finding.message for finding in errors(spec))


def test_mixtrals_router_has_the_name_of_transformers_4_too() -> None:
    router = {"block_sparse_moe.gate": (4, HIDDEN, COUNT)}
    assert errors(adapter(Q | router, target_modules=["q_proj", "gate"]), base(model_type="mixtral")) == []


@pytest.mark.parametrize(
    ("inputs", "outputs", "lost", "codes"),
    [
        (2 * INNER, COUNT, 0, []),
        (2 * INNER, COUNT + 1, 0, ["compat.shape"]),
        (2 * INNER, COUNT, 1, ["compat.module_missing"]),
    ],
)
def test_the_biases_of_experts_are_one_matrix_that_target_parameters_may_name(
    inputs: int, outputs: int, lost: int, codes: list[str]
) -> None:
    """As PEFT trains them on GPT-OSS: one pair for all experts."""
    shapes: Shapes = {"model.embed_tokens.weight": (64, HIDDEN), "lm_head.weight": (64, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes[f"{at}.self_attn.q_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{at}.mlp.experts.gate_up_proj"] = (COUNT, HIDDEN, 2 * INNER)
        shapes[f"{at}.mlp.experts.gate_up_proj_bias"] = (COUNT, 2 * INNER)
    fields = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_hidden_layers": LAYERS}
    gpt_oss = bases.base_spec("moe", fields, [header(shapes)]).model_copy(update={"names_known": True})
    targets = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj_bias"]}
    spec = adapter(Q if lost else Q | {"mlp.experts": (4, inputs, outputs)}, **targets)
    assert sorted({finding.code for finding in errors(spec, gpt_oss)}) == codes
