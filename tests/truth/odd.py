"""Adapters that the generated mutations do not reach: fields that work together, names that mislead, mixed numbers.

Each is an honest adapter that PEFT saves and what was done to its files afterwards. PEFT says which of them are right.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from registry.versions.files import CONFIG
from tests.truth import architectures, cases, methods, oracle
from tests.truth.cases import Base, Case, Group, Plan
from tests.truth.mutations import Mutated, Tensors, Written

Change = Callable[[Tensors, Written], tuple[Tensors, Written]]


@dataclass(frozen=True)
class Odd:
    """`fields`: of PEFT's class `kind`; `changes`: name → what is done to the files; `raw`: path → for `"r": 4, `.

    `older`: what makes of the files those that an older library saved.
    """

    fields: Mapping[str, Any]
    changes: Mapping[str, Change] = field(default_factory=dict)
    kind: type[peft.PeftConfig] = peft.LoraConfig
    raw: Mapping[str, bytes] = field(default_factory=dict)
    older: Change | None = None


def stated(**fields: Any) -> Change:
    """Write these fields of the configuration."""
    return lambda tensors, written: (tensors, written | fields)


def unstated(*fields: str) -> Change:
    """Remove these fields of the configuration."""
    return lambda tensors, written: (tensors, {k: v for k, v in written.items() if k not in fields})


def without(pattern: str, count: int | None = None) -> Change:
    """Remove the tensors whose names hold the pattern, or so many of them."""

    def change(tensors: Tensors, written: Written) -> tuple[Tensors, Written]:
        names = [name for name in sorted(tensors) if re.search(pattern, name)][:count]
        return {name: tensor for name, tensor in tensors.items() if name not in names}, written

    return change


def renamed(pattern: str, replacement: str, *, beside: bool = False) -> Change:
    """Rename tensors; `beside`: keep those of the old names too."""

    def change(tensors: Tensors, written: Written) -> tuple[Tensors, Written]:
        other = {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}
        return (tensors if beside else {}) | other, written

    return change


def numbers(pattern: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Edit the tensors whose names hold the pattern."""
    return lambda tensors, written: (
        {name: edit(tensor) if re.search(pattern, name) else tensor for name, tensor in tensors.items()}, written
    )  # fmt: skip


def both(first: Change, second: Change) -> Change:
    """One change after the other."""
    return lambda tensors, written: second(*first(tensors, written))


def to(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Convert the numbers."""
    return lambda tensor: tensor.to(dtype)


def with_base(module: str) -> Change:
    """Add the matrix of the base beside the pair of the module in layer 0, as PEFT does of embeddings only."""

    def change(tensors: Tensors, written: Written) -> tuple[Tensors, Written]:
        name = next(name for name in tensors if f".0.attn.{module}.lora_A" in name)
        path = name.partition(".lora_A")[0]
        return tensors | {f"{path}.base_layer.weight": torch.zeros(32, 96)}, written

    return change


def by_expert(block: str, gates: tuple[str, str, str]) -> Change:
    """Add LoRA of each expert as transformers 4 named them. `block`: their path in a layer; `gates`: gate, up, down."""

    def change(tensors: Tensors, written: Written) -> tuple[Tensors, Written]:
        made, hidden, inner = dict(tensors), 32, 48
        for layer, expert, name in itertools.product(range(2), range(4), gates):
            inputs, outputs = (inner, hidden) if name == gates[2] else (hidden, inner)
            path = f"base_model.model.model.layers.{layer}.{block}.experts.{expert}.{name}"
            made[f"{path}.lora_A.weight"] = torch.randn(2, inputs) / 20
            made[f"{path}.lora_B.weight"] = torch.randn(outputs, 2) / 20
        return made, written | {"target_modules": sorted({*written["target_modules"], *gates})}

    return change


QV = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
NARROW = {"narrow": numbers("q_proj.lora_A", lambda t: t[:, :-1].clone()), "lost": without("q_proj.lora_B", 1)}
BEFORE_4_52 = renamed(r"model\.language_model\.", "language_model.model.")
PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
EXPERTS = {"r": 2, "target_modules": ["q_proj"], "target_parameters": PARAMETERS}
ODD: dict[str, dict[str, Odd]] = {
    "mixtral": {
        "experts": Odd(EXPERTS, {
            "lost-inner": without(r"base_layer\.lora_A", 1), "lost-outer": without(r"experts\.lora_B", 1),
            "fewer-experts": numbers(r"experts.*lora_A", lambda t: t[: len(t) // 2].clone()),
            "rank-of-one": stated(rank_pattern={"experts.down_proj": 1}), "unstated": unstated("target_parameters"),
            "other-order": stated(target_parameters=PARAMETERS[::-1]),
            "one-stated": stated(target_parameters=PARAMETERS[:1]),
            "by-module": stated(target_modules=["q_proj", "experts"], target_parameters=None),
            "missing": stated(target_parameters=["mlp.experts.nothing"]),
            "router-too": stated(target_parameters=[*PARAMETERS, "mlp.gate.weight"]),
        }),
        "experts-ranked": Odd(EXPERTS | {"rank_pattern": {"experts.gate_up_proj": 4}, "alpha_pattern": {"experts": 3}}),
        "router": Odd({"r": 4, "target_modules": ["q_proj"], "target_parameters": ["mlp.gate.weight"]}),
        "saved-experts": Odd(QV | {"modules_to_save": ["experts"]}, {"lost": without("down_proj", 1)}),
    },
    "mixtral-by-expert": {
        "list": Odd({"r": 2, "target_modules": ["q_proj"]}, {"lost": without(r"experts\.1\.w2.lora_B", 1)},
                    older=by_expert("block_sparse_moe", ("w1", "w3", "w2"))),
    },
    "glm4_moe": {
        "list": Odd({"r": 2, "target_modules": ["q_proj", "up_proj", "down_proj", "gate_proj"]},
                    older=by_expert("mlp", ("gate_proj", "up_proj", "down_proj"))),
    },
    "jetmoe": {
        "weights": Odd({"r": 2, "target_modules": ["kv_proj"], "target_parameters": [
            "mlp.input_linear.weight", "mlp.output_linear.weight"]}, {
                "fewer": numbers("input_linear.lora_A", lambda t: t[:-2].clone()), "lost": without(
                    "output_linear.lora_B", 1)}),
        "saved": Odd({"r": 2, "target_modules": ["kv_proj"], "modules_to_save": ["experts"]}),
    },
    "llava": {"before-4.52": Odd(QV, NARROW, older=BEFORE_4_52)},
    "gemma3": {"before-4.52": Odd(QV, NARROW, older=BEFORE_4_52)},
    "qwen2_vl": {"before-4.52": Odd(QV, older=renamed(r"model\.language_model\.", "model."))},
    "gpt2-heads": {
        "saved-head": Odd({"r": 4, "target_modules": ["c_attn"], "modules_to_save": ["lm_head"]}),
    },
    "bloom": {"ends": Odd({"r": 4, "target_modules": ["word_embeddings", "lm_head"]})},
    "t5": {"ends": Odd({"r": 4, "target_modules": ["shared", "lm_head", "q"]})},
    "mamba2": {"ends": Odd({"r": 4, "target_modules": ["embeddings", "lm_head"]})},
    "whisper": {
        "ends": Odd({"r": 4, "target_modules": ["embed_tokens", "proj_out", "q_proj"]}),
        "tied": Odd({"r": 4, "target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}),
    },
    "llama": {
        "saved-names": Odd(QV | {"modules_to_save": ["input_layernorm", "norm"]}, {
            "suffix": stated(modules_to_save=["layernorm"]), "nothing": stated(modules_to_save=["no_such_module"]),
            "pattern": stated(modules_to_save=[r".*norm"]), "empty-name": stated(modules_to_save=[""]),
            "full-path": stated(modules_to_save=["model.norm", "model.layers.0.input_layernorm"]),
        }),
        "saved-block": Odd(QV | {"modules_to_save": ["mlp"]}, {
            "lost": without("mlp.up_proj", 1), "one-layer": stated(modules_to_save=["layers.1.mlp"]),
            "bytes": numbers("mlp", to(torch.int8)), "narrow": numbers("mlp.up", lambda t: t[:-1].clone()),
        }),
        "saved-target": Odd(QV | {"modules_to_save": ["o_proj"]}, {
            "both": stated(target_modules=["q_proj", "v_proj", "o_proj"]),
        }),
        "resized": Odd(QV | {"modules_to_save": ["embed_tokens", "lm_head"]}, {
            "rows": numbers("embed_tokens|lm_head", lambda t: torch.cat([t, t[:8]])),
            "half": numbers("lm_head", lambda t: t[:48].clone()),
        }),
        "ranks": Odd(QV | {"rank_pattern": {r"^model\.layers\.0.*q_proj": 2, "layers.1.self_attn.v_proj": 6}}, {
            "prefixed": stated(rank_pattern={r"base_model\.model\.model\.layers\.0.*q_proj": 2}),
            "unanchored": stated(rank_pattern={r"layers\.0.*q_proj": 2, "layers.1.self_attn.v_proj": 6}),
            "dot-is-any": stated(rank_pattern={"layers.0.self.attn.q_proj": 2, "layers.1.self_attn.v_proj": 6}),
            "order": stated(rank_pattern={"v_proj": 4, "layers.1.self_attn.v_proj": 6, "layers.0.self_attn.q_proj": 2}),
            "broken": stated(rank_pattern={"(": 2}), "group": stated(rank_pattern={r"(0|1).self_attn.q_proj": 2}),
            "huge-default": stated(r=10**6), "float": stated(r=4.0), "bool": stated(r=True),
        }),
        "alphas": Odd(QV | {"alpha_pattern": {r"layers\.0.*": 0.5}}, {
            "negative": stated(alpha_pattern={"q_proj": -3}), "zero": stated(lora_alpha=0, alpha_pattern={}),
            "text": stated(lora_alpha="8"), "overflow": stated(lora_alpha=1e39), "infinite": stated(
                lora_alpha=float("inf")),
            "broken": stated(alpha_pattern={"[": 2}), "list": stated(alpha_pattern=[["q_proj", 3]]),
        }),
        "layers": Odd(QV | {"layers_to_transform": [1], "layers_pattern": "layers"}, {
            "number": stated(layers_to_transform=1), "twice": stated(layers_to_transform=[1, 1]),
            "negative": stated(layers_to_transform=[-1]), "patterns": stated(layers_pattern=["layers", "h"]),
            "other-pattern": stated(layers_pattern="h"), "text": stated(layers_to_transform=["1"]),
            "regex": stated(layers_pattern="lay.rs"), "all": stated(layers_to_transform=None, layers_pattern=None),
            "broken": stated(layers_pattern="("),
        }),
        "loftq": Odd(QV, {
            "config-alone": stated(loftq_config={"loftq_bits": 4}), "unread": stated(loftq_config={"bits": "x"}),
            "eva": stated(init_lora_weights="eva", eva_config={"rho": 2.0}),
            "corda": stated(init_lora_weights="corda", corda_config={"corda_method": "kpm"}),
            "lora-ga": stated(init_lora_weights="lora_ga", lora_ga_config={}), "orthogonal": stated(
                init_lora_weights="orthogonal"),
            "arrow": stated(arrow_config={"top_k": 2}), "megatron": stated(megatron_config={"a": 1}),
        }),
        "dtypes": Odd(QV, {
            "bf16-fp8": both(numbers("lora_A", to(torch.bfloat16)), numbers("lora_B", to(torch.float8_e4m3fn))),
            "fp8-e5m2": numbers("lora_", to(torch.float8_e5m2)), "fp16-fp32": numbers("lora_A", to(torch.float16)),
            "one-double": numbers("layers.0.*q_proj.*lora_A", to(torch.float64)), "bool": numbers(
                "lora_A", to(torch.bool)), "complex": numbers("lora_A", to(torch.complex64)),
            "uint8": numbers("lora_B", to(torch.uint8)), "huge": numbers("lora_B", lambda t: t * 1e30),
            "tiny": numbers("lora_B", lambda t: t * 1e-30), "overflow": numbers("lora_", lambda t: t * 1e25),
        }),
        "names": Odd(QV, {
            "nested": renamed(r"^", "base_model.model."), "wrapped": renamed(r"^", "module."),
            "default": renamed(r"\.weight$", ".default.weight"), "default-too": renamed(
                r"\.weight$", ".default.weight", beside=True),
            "bare-too": renamed(r"^base_model\.model\.", "", beside=True), "compiled": renamed(
                r"^base_model\.model\.", "base_model.model._orig_mod."),
            "upper": renamed("lora_A", "LORA_A"), "old": renamed(r"\.weight$", ""), "base-layer": renamed(
                r"q_proj\.lora", "q_proj.base_layer.lora"), "language-model": renamed(
                r"model\.layers", "language_model.layers"), "other-adapter": renamed(r"\.weight$", ".other.weight"),
            "magnitude": lambda tensors, written: (
                tensors | {"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": torch.ones(64)},
                written),
            "empty-pair": lambda tensors, written: (tensors | {
                "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight": torch.zeros(0, 64),
                "base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight": torch.zeros(32, 0)}, written),
            "scalar": lambda tensors, written: (tensors | {"base_model.model.scale": torch.tensor(1.0)}, written),
        }),
        "words": Odd(QV, {
            "lower-type": stated(peft_type="lora"), "lower-task": stated(task_type="causal_lm"),
            "bias-lora-only": stated(bias="lora_only"), "bias-all": stated(bias="all"),
            "fan": stated(fan_in_fan_out=True), "fan-null": stated(fan_in_fan_out=None),
            "mapping": stated(auto_mapping={"base_model_class": "X", "parent_library": "os"}),
            "dropout": stated(lora_dropout=1.5), "dropout-one": stated(lora_dropout=1.0), "exclude-all": stated(
                exclude_modules=".*"), "exclude-layer": stated(exclude_modules=r".*layers\.0.*"), "target-text": stated(
                target_modules="q_proj"), "target-dict": stated(target_modules={"q_proj": 1}), "target-none": stated(
                target_modules=None), "target-path": stated(target_modules=[
                    f"model.layers.{n}.self_attn.{m}" for n in (0, 1) for m in ("q_proj", "v_proj")]), "target-suffix":
            stated(target_modules=["attn.q_proj", "proj"]), "monteclora": stated(monteclora_config={}),
            "tying": stated(ensure_weight_tying=True), "dora-bnb": stated(use_dora="yes"), "tokens-empty": stated(
                trainable_token_indices=[]), "tokens-empty-map": stated(trainable_token_indices={}),
        }),
        "repeated-field": Odd(QV, raw={CONFIG: b'"r": 8, "r": 4, '}),
        "repeated-last": Odd(QV, raw={CONFIG: b'"r": 4, "r": 8, '}),
        "dora-embedding": Odd({"r": 4, "target_modules": ["q_proj", "embed_tokens"], "use_dora": True}, {
            "lost-magnitude": without("embed_tokens.*magnitude"), "flat": numbers(
                "magnitude", lambda t: t[:-1].clone()),
            "not-dora": stated(use_dora=False), "negative": numbers("magnitude", lambda t: -t),
        }),
        "biased": Odd(QV | {"lora_bias": True}, {"lost": without("lora_B.bias", 1), "unstated": unstated("lora_bias")}),
        "replicated": Odd(QV | {"layer_replication": [[0, 2], [0, 2]], "rank_pattern": {r"layers\.3.*q_proj": 2}}, {
            "unranked": stated(rank_pattern={}), "fewer": stated(layer_replication=[[0, 2], [0, 1]]),
        }),
        "ia3": Odd({"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}, {
            "no-feedforward": stated(feedforward_modules=[]), "other": stated(feedforward_modules=["k_proj"]),
            "more": stated(feedforward_modules=["k_proj", "down_proj"]), "null": stated(feedforward_modules=None),
            "pattern": stated(feedforward_modules=r".*down_proj"),
        }, peft.IA3Config),
        "vera": Odd({"target_modules": ["q_proj", "o_proj"], "r": 8}, {
            "lost-projection": without("vera_(A|B)$"), "other-key": stated(projection_prng_key=7), "unsaved": stated(
                save_projection=False), "lost-and-unsaved": both(without("vera_(A|B)$"), stated(save_projection=False)),
            "lost-unsaved-key": both(without("vera_(A|B)$"), stated(save_projection=False, projection_prng_key=7)),
            "short": numbers("vera_A$", lambda t: t[:, :-1].clone()), "more-modules": stated(
                target_modules=["q_proj", "o_proj", "gate_proj"]),
        }, peft.VeraConfig),
        "prompt": Odd({"num_virtual_tokens": 6}, {
            "fewer": stated(num_virtual_tokens=5), "layers": stated(num_layers=7), "dim": stated(token_dim=32),
            "init-text": stated(prompt_tuning_init="TEXT", prompt_tuning_init_text="x", tokenizer_name_or_path="x"),
            "submodules": stated(num_transformer_submodules=2), "modules": stated(modules_to_save=["lm_head"]),
        }, peft.PromptTuningConfig),
        "prefix": Odd({"num_virtual_tokens": 6}, {
            "heads": stated(num_attention_heads=2), "projection": stated(prefix_projection=True), "layers": stated(
                num_layers=1), "encoder": stated(encoder_hidden_size=8),
        }, peft.PrefixTuningConfig),
    },
    "llama-tied": {
        "tokens": Odd(QV | {"trainable_token_indices": {"embed_tokens": [3, 5]}}, {
            "head-too": stated(trainable_token_indices={"embed_tokens": [3, 5], "lm_head": [3, 5]}), "head-alone":
            stated(trainable_token_indices={"lm_head": [3, 5]}), "repeated": stated(
                trainable_token_indices={"embed_tokens": [3, 3]}), "negative": stated(
                trainable_token_indices={"embed_tokens": [-1, 5]}), "order": stated(
                trainable_token_indices={"embed_tokens": [5, 3]}), "lost": without("token_adapter"),
        }),
        "head": Odd({"r": 4, "target_modules": ["q_proj", "lm_head"]}, {"lost": without("lm_head.*lora_B")}),
        "tying": Odd(QV | {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, {
            "untied": stated(ensure_weight_tying=False), "head-too": stated(
                modules_to_save=["embed_tokens", "lm_head"]),
            "head-alone": stated(modules_to_save=["lm_head"]),
        }),
        "embedding": Odd({"r": 4, "target_modules": ["embed_tokens"]}, {
            "with-head": stated(target_modules=["embed_tokens", "lm_head"]), "tied": stated(ensure_weight_tying=True),
        }),
    },
    "llama-body": {
        "plain": Odd(QV, {
            "lost": without("lora_B", 1), "wide": numbers("lora_A", lambda t: torch.cat([t, t], 1)),
            "layers": stated(layers_to_transform=[0]), "no-task": stated(task_type=None),
            "mapped": stated(task_type=None, auto_mapping={
                "base_model_class": "LlamaModel", "parent_library": "transformers.models.llama.modeling_llama"}),
            "writes": stated(task_type="CAUSAL_LM"), "more": stated(target_modules=["q_proj", "v_proj", "o_proj"]),
        }),
        "saved": Odd(QV | {"modules_to_save": ["norm"]}, {"lost": without("norm"), "head": stated(
            modules_to_save=["norm", "lm_head"])}),
        "embedding": Odd({"r": 4, "target_modules": ["embed_tokens"]}),
        "prompt": Odd({"num_virtual_tokens": 6}, kind=peft.PromptTuningConfig),
        "ia3": Odd({"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}, {
            "lost": without("ia3_l", 1)}, peft.IA3Config),
    },
    "bert-body": {
        "plain": Odd({"r": 4, "target_modules": ["query"]}, {"lost": without("lora_A", 1)}),
        "pooler": Odd({"r": 4, "target_modules": ["query", "pooler.dense"]}, {"lost": without("pooler.*lora_B")}),
    },
    "bert-headed": {
        "plain": Odd({"r": 4, "target_modules": ["query"]}, {"lost": without("lora_A", 1), "headless": without(
            "classifier"), "bare": renamed(r"model\.bert\.", "model.")}),
        "dense": Odd({"r": 4, "target_modules": ["dense"]}, {
            "wide": numbers("lora_A", lambda t: torch.cat([t, t], 1)),
        }),
    },
    "BertForSequenceClassification": {
        "bias-lora-only": Odd({"r": 4, "target_modules": ["query"], "bias": "lora_only"}, {
            "lost": without(r"query.*\.bias", 1), "all": stated(bias="all"), "none": stated(bias="none"),
            "head": without("classifier"), "head-bias": without("classifier.bias"), "no-task": stated(task_type=None),
        }),
        "pooler": Odd({"r": 4, "target_modules": ["dense"], "modules_to_save": ["pooler"]}, {
            "unstated": stated(modules_to_save=None), "renamed": renamed(r"classifier\.", "score."),
        }),
    },
    "gpt2": {
        "fan": Odd({"r": 4, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}, {
            "not": stated(fan_in_fan_out=False), "transposed": numbers("lora_", lambda t: t.T.contiguous()),
        }),
        "dora": Odd({"r": 4, "target_modules": ["c_attn"], "use_dora": True, "fan_in_fan_out": True}, {
            "not": stated(fan_in_fan_out=False), "row": numbers("magnitude", lambda t: t[:32].clone()),
        }),
        "ends": Odd({"r": 4, "target_modules": ["wte", "lm_head", "c_attn"], "fan_in_fan_out": True}, {
            "base-too": with_base("c_attn"), "unnamed": stated(target_modules=["wte", "c_attn"]),
        }),
    },
    "speech_to_text": {
        "convolution": Odd({"r": 4, "target_modules": ["conv_layers.0", "q_proj"]}, {
            "dora": stated(use_dora=True), "short": numbers("conv_.*lora_A", lambda t: t[..., :-1].clone()),
            "lost": without("conv_.*lora_B"), "flat-b": numbers("conv_.*lora_B", lambda t: t.squeeze(-1)),
        }),
        "convolution-dora": Odd({"r": 4, "target_modules": ["conv_layers.0"], "use_dora": True}, {
            "lost": without("magnitude"), "flat": numbers("magnitude", torch.flatten),
        }),
    },
    "squeezebert": {
        "groups": Odd({"r": 4, "target_modules": ["query", "post_attention.conv1d"]}, {
            "one": numbers("query.lora_B", lambda t: t.repeat(1, 4, 1)), "flat": numbers(
                "lora_", lambda t: t.squeeze(-1)), "wider": numbers("conv1d.lora_A", lambda t: t.repeat(1, 1, 3)),
            "channels": numbers("query.lora_A", lambda t: t[:, :8].clone()),
        }),
        "groups-dora": Odd({"r": 4, "target_modules": ["query"], "use_dora": True}),
    },
}  # fmt: skip
"""Base → group → adapter."""
BASES = {
    "mixtral": ("mixtral", "MixtralForCausalLM"), "gpt2": ("gpt2", "GPT2LMHeadModel"),
    "BertForSequenceClassification": ("bert", "BertForSequenceClassification"),
    "speech_to_text": ("speech_to_text", "Speech2TextForConditionalGeneration"),
    "squeezebert": ("squeezebert", "SqueezeBertForMaskedLM"),
    "mixtral-by-expert": ("mixtral", "MixtralForCausalLM"), "glm4_moe": ("glm4_moe", "Glm4MoeForCausalLM"),
    "gpt2-heads": ("gpt2", "GPT2DoubleHeadsModel"), "jetmoe": ("jetmoe", "JetMoeForCausalLM"),
    "llava": ("llava", "LlavaForConditionalGeneration"),
    "gemma3": ("gemma3", "Gemma3ForConditionalGeneration"),
    "qwen2_vl": ("qwen2_vl", "Qwen2VLForConditionalGeneration"), "bloom": ("bloom", "BloomForCausalLM"),
    "t5": ("t5", "T5ForConditionalGeneration"), "mamba2": ("mamba2", "Mamba2ForCausalLM"),
    "whisper": ("whisper", "WhisperForConditionalGeneration"),
}  # fmt: skip
"""Of `architectures.build`; the Llamas are those of the methods."""
OTHER_CLASSES = {
    "llama-body": ("llama", "LlamaForCausalLM", "AutoModel"), "bert-body": ("bert", "BertForMaskedLM", "AutoModel"),
    "bert-headed": ("bert", "BertModel", "AutoModelForSequenceClassification"),
}  # fmt: skip
"""As which class PEFT loads these for the tasks of their adapters."""


def plans() -> Iterator[Plan]:
    """A plan for each base."""
    for base, groups in ODD.items():
        names = tuple(f"odd@{base}/{name}" for name in groups)
        yield Plan(f"odd@{base}", names, functools.partial(_base, base), _group)


def _base(name: str, folder: Path) -> Base:
    if name in BASES:
        return cases.architecture_base(*BASES[name], folder)
    if name in OTHER_CLASSES:
        model_type, saved, loaded = OTHER_CLASSES[name]
        inputs = cases.architecture_base(model_type, saved, folder).subject.inputs
        torch.manual_seed(0)
        return Base(folder, oracle.subject_of(getattr(transformers, loaded).from_pretrained(folder).eval(), inputs))
    base = cases.methods_base("", folder)
    if name == "llama-tied":
        base.subject.model.config.tie_word_embeddings = True
        base.subject.model.tie_weights()
        base.subject.model.save_pretrained(folder)
        model = type(base.subject.model).from_pretrained(folder).eval()
        base = Base(folder, oracle.subject_of(model, base.subject.inputs))
    return base


def _group(base: Base, name: str, folder: Path) -> Group:
    """The group of one odd adapter."""
    odd = ODD[name.partition("/")[0].removeprefix("odd@")][name.partition("/")[2]]
    model = base.subject.copy()
    task = "FEATURE_EXTRACTION" if type(model).__name__.endswith("Model") else architectures.task_of(model)
    methods.make_from(model, odd.kind(task_type=task, **odd.fields), folder)
    tolerated = oracle.tolerance(base.subject, folder)
    tensors, written = cases.read(folder)
    if odd.older is not None:
        tensors, written = odd.older(tensors, written)
        Case(name, tensors, written).write(folder)
        tolerated = oracle.tolerance(base.subject, folder, older=True)
        shutil.rmtree(folder)
    raw = {path: json.dumps(written).encode().replace(b'"r": 4, ', text) for path, text in odd.raw.items()}
    changes: list[Mutated] = [(change, *edit(tensors, written)) for change, edit in odd.changes.items()]
    return Group(name, base, tensors, written, changes, tolerated, raw, saved_by_peft=not raw)
