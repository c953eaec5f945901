"""Honest adapters of every PEFT method: one or more configurations each, saved by PEFT itself.

They are made on a tiny Llama, a classifier and an encoder-decoder. Names of modules here are Llama's; `BASES` has the
others'.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from tests.fixtures.observed import shake

QV = ["q_proj", "v_proj"]
QO = ["q_proj", "o_proj"]
FLAT = {"layers_to_transform": [1]}
SAVED = {"modules_to_save": ["lm_head", "norm"]}
TOKENS = {"num_virtual_tokens": 6}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "LORA": {
        "plain": {"r": 4, "target_modules": QV}, "rslora": {"r": 4, "target_modules": QV, "use_rslora": True},
        "dora": {"r": 4, "target_modules": QV, "use_dora": True},
        "patterns": {"r": 4, "target_modules": QV, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        "lora-bias": {"r": 4, "target_modules": QV, "lora_bias": True},
        "saved": {"r": 4, "target_modules": QV, **SAVED},
        "embedding": {"r": 4, "target_modules": ["q_proj", "embed_tokens"]},
        "tokens": {"r": 4, "target_modules": QV, "trainable_token_indices": [3, 5, 7]},
        "parameters": {"r": 4, "target_modules": QV, "target_parameters": ["mlp.up_proj.weight"]},
        "layers": {"r": 4, "target_modules": QV, **FLAT},
        "alora": {"r": 4, "target_modules": QV, "alora_invocation_tokens": [7, 8]},
        "replication": {"r": 4, "target_modules": QV, "layer_replication": [[0, 2], [1, 2]]},
        "qalora": {"r": 4, "target_modules": QV, "use_qalora": True, "qalora_group_size": 16},
        "bdlora": {"r": 4, "target_modules": ["q_proj", "down_proj"], "use_bdlora": peft.tuners.lora.BdLoraConfig(
            target_modules_bd_a=["down_proj"], target_modules_bd_b=["q_proj"], nblocks=2)},
        "kasa": {"r": 4, "target_modules": QV, "kasa_config": peft.tuners.lora.config.KasaConfig()},
        "montecarlo": {"r": 4, "target_modules": QV, "monteclora_config": peft.tuners.lora.config.MontecloraConfig()},
        "velora": {"r": 4, "target_modules": QV, "velora_config": peft.tuners.lora.config.VeloraConfig()},
        "pissa": {"r": 4, "target_modules": QV, "init_lora_weights": "pissa"},
    },
    "ADALORA": {"plain": {"target_modules": QV, "init_r": 4, "target_r": 2, "total_step": 10},
                "masked": {"target_modules": QV, "init_r": 4, "target_r": 2, "total_step": 10, "rank_pattern": {
                    "model.layers.0.self_attn.q_proj.lora_E": [False] * 4}}},
    "ADAMSS": {"plain": {"target_modules": QV, "r": 8, "num_subspaces": 2}},
    "ADAPTION_PROMPT": {"plain": {"adapter_len": 4, "adapter_layers": 2}},
    "BEFT": {"plain": {"target_modules": QV}},
    "BOFT": {"plain": {"target_modules": QV, "boft_block_size": 4},
             "butterfly": {"target_modules": QV, "boft_block_size": 4, "boft_n_butterfly_factor": 2}},
    "C3A": {"plain": {"target_modules": QV, "block_size": 16}},
    "CARTRIDGE": {"plain": TOKENS},
    "CPT": {"plain": {"cpt_token_ids": [3, 4, 5, 6], "cpt_mask": [1] * 4, "cpt_tokens_type_mask": [1, 2, 3, 4]}},
    "DEFT": {"plain": {"target_modules": QV, "r": 4},
             "qr": {"target_modules": QV, "r": 4, "decomposition_method": "qr"}},
    "DELORA": {"plain": {"target_modules": QV, "r": 4}},
    "FOURIERFT": {"plain": {"target_modules": QV, "n_frequency": 20}},
    "FROD": {"plain": {"target_modules": QV, "progressbar": False}},
    "GLORA": {"plain": {"target_modules": QV, "r": 4},
              "vectors": {"target_modules": QV, "r": 4, "config_A_B": "vector", "config_C": "vector",
                          "config_D_E": "vector"}},
    "GRALORA": {"plain": {"target_modules": QV, "r": 8}, "hybrid": {"target_modules": QV, "r": 8, "hybrid_r": 4}},
    "HIRA": {"plain": {"target_modules": QV, "r": 4}},
    "HRA": {"plain": {"target_modules": QV, "r": 4}, "gram-schmidt": {"target_modules": QV, "r": 4, "apply_GS": True}},
    "IA3": {"plain": {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}},
    "LILY": {"plain": {"target_modules": QV, "r": 4}},
    "LN_TUNING": {"plain": {}},
    "LOHA": {"plain": {"target_modules": QV, "r": 4}, "saved": {"target_modules": QV, "r": 4, **SAVED}},
    "LOKR": {"plain": {"target_modules": QV, "r": 4}, "both": {"target_modules": QV, "r": 2, "decompose_both": True},
             "factor": {"target_modules": QV, "r": 4, "decompose_factor": 8}},
    "MISS": {"plain": {"target_modules": QV, "r": 4}, "bat": {"target_modules": QV, "r": 4, "init_weights": "bat"},
             "mini": {"target_modules": QV, "r": 8, "mini_r": 4, "init_weights": "mini"}},
    "MULTITASK_PROMPT_TUNING": {"plain": {**TOKENS, "num_tasks": 2}},
    "OFT": {"plain": {"target_modules": QV, "oft_block_size": 8},
            "by-rank": {"target_modules": QV, "r": 8, "oft_block_size": 0},
            "shared": {"target_modules": QV, "oft_block_size": 8, "block_share": True}},
    "OSF": {"plain": {"target_modules": QV, "effective_rank": 4}},
    "PEANUT": {"plain": {"target_modules": QV, "r": 4}, "deep": {"target_modules": QV, "r": 4, "depth": 2}},
    "POLY": {"plain": {"target_modules": QV, "r": 4, "n_tasks": 2, "n_skills": 2}},
    "PREFIX_TUNING": {"plain": TOKENS, "projected": {**TOKENS, "prefix_projection": True, "encoder_hidden_size": 16}},
    "PROMPT_TUNING": {"plain": TOKENS},
    "PSOFT": {"plain": {"target_modules": QV, "r": 4}},
    "PVERA": {"plain": {"target_modules": QO, "r": 8}, "unsaved": {"target_modules": QO, "r": 8,
                                                                   "save_projection": False}},
    "P_TUNING": {"plain": {**TOKENS, "encoder_hidden_size": 32},
                 "lstm": {**TOKENS, "encoder_hidden_size": 32, "encoder_reparameterization_type": "LSTM"}},
    "RANDLORA": {"plain": {"target_modules": QO, "r": 8}, "unsaved": {"target_modules": QO, "r": 8,
                                                                      "save_projection": False}},
    "ROAD": {"plain": {"target_modules": QV, "group_size": 8},
             "road-2": {"target_modules": QV, "group_size": 8, "variant": "road_2"},
             "road-4": {"target_modules": QV, "group_size": 8, "variant": "road_4"}},
    "SHADOW": {"plain": {"r": 4}, "sized": {"r": 4, "shadow_hidden_size": 32, "shadow_num_hidden_layers": 2,
                                            "shadow_intermediate_size": 40, "share_embeddings": False}},
    "SHIRA": {"plain": {"target_modules": QV, "r": 4}},
    "SUPERTUNING": {"plain": {"target_modules": QV, "sparsity": 0.9}, "rank": {"target_modules": QV, "sparsity": 0.9,
                                                                               "r": 4}},
    "TINYLORA": {"plain": {"target_modules": QV, "u": 8}},
    "TRAINABLE_TOKENS": {"plain": {"target_modules": ["embed_tokens"], "token_indices": [3, 5]}},
    "UNILORA": {"plain": {"target_modules": QV, "r": 4}, "indices": {"target_modules": QV, "save_indices": True}},
    "VBLORA": {"plain": {"target_modules": QV, "r": 4, "num_vectors": 12, "vector_length": 16},
               "top-k": {"target_modules": QV, "r": 4, "num_vectors": 12, "vector_length": 16,
                         "save_only_topk_weights": True}},
    "VERA": {"plain": {"target_modules": QO, "r": 8}, "unsaved": {"target_modules": QO, "r": 8,
                                                                  "save_projection": False}},
    "WAVEFT": {"plain": {"target_modules": QV, "n_frequency": 20}},
    "XLORA": {"plain": {}},
}  # fmt: skip
"""Method → name of a variant → fields of its configuration class. A test holds that every method of PEFT is here."""


@dataclass(frozen=True, slots=True)
class BaseKind:
    """A base of the methods.

    `task`: PEFT's; `names`: Llama's name of a module, or a part of it, → the name here; `fields`: what a method needs
    here beside `VARIANTS`; `methods`: all if empty.
    """

    maker: str
    task: str
    other_task: str
    config: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    methods: frozenset[str] = frozenset()


_TOKENS = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA = {**_TOKENS, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
BASES: dict[str, BaseKind] = {
    "": BaseKind("LlamaForCausalLM", "CAUSAL_LM", "SEQ_CLS", _LLAMA),
    "classifier": BaseKind("BertForSequenceClassification", "SEQ_CLS", "CAUSAL_LM", {
        **_TOKENS, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 128, "num_labels": 3}, {
        "model.layers.0.self_attn": "bert.encoder.layer.0.attention.self", "mlp.up_proj": "intermediate.dense",
        "model.layers.0.mlp.gate_proj": "bert.encoder.layer.0.intermediate.dense",
        "q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "attention.output.dense",
        "gate_proj": "intermediate.dense", "down_proj": "intermediate.dense", "embed_tokens": "word_embeddings",
        "lm_head": "classifier", "norm": "LayerNorm", "layers": "layer"},
        {"LN_TUNING": {"target_modules": ["LayerNorm"]}, "SHADOW": {"target_modules": r".*\.layer\.\d+"}}),
    "decoder-classifier": BaseKind(
        "LlamaForSequenceClassification", "SEQ_CLS", "CAUSAL_LM", _LLAMA | {"num_labels": 3}, {"lm_head": "score"},
        methods=frozenset({"ADAPTION_PROMPT", "LN_TUNING", "PREFIX_TUNING", "SHADOW"})),
    "encoder-decoder": BaseKind("T5ForConditionalGeneration", "SEQ_2_SEQ_LM", "SEQ_CLS", {
        **_TOKENS, "d_model": 64, "d_kv": 16, "d_ff": 80, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
        "tie_word_embeddings": False}, {
        "model.layers.0.self_attn": "encoder.block.0.layer.0.SelfAttention", "mlp.up_proj": "DenseReluDense.wi",
        "model.layers.0.mlp.gate_proj": "encoder.block.0.layer.1.DenseReluDense.wi",
        "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "gate_proj": "wi", "down_proj": "wo",
        "embed_tokens": "shared", "norm": "final_layer_norm", "layers": "block"},
        {"SHADOW": {"target_modules": r".*\.block\.\d+"}}),
}  # fmt: skip
"""Name → base; the Llama has no name. No two of its matrix sizes are equal by chance."""


def base_kind_of(group: str) -> str:
    """The name of the base of a group such as `lora@classifier/plain`."""
    return group.partition("/")[0].partition("@")[2]


def method_of(group: str) -> str:
    """The method of a group, as PEFT calls it."""
    return group.partition("/")[0].partition("@")[0].upper()


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """The value with the names of another base's modules, in texts, lists, keys and PEFT's own configurations."""
    if not names:
        return value
    if isinstance(value, str):
        words = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        return re.sub(rf"(?<![A-Za-z_])({words})(?![A-Za-z_])", lambda match: names[match.group()], value)
    if isinstance(value, list):
        return [renamed(item, names) for item in value]
    if isinstance(value, dict):
        return {renamed(key, names): renamed(item, names) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: renamed(getattr(value, field.name), names) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def make_base(folder: Path, name: str = "") -> Path:
    """Save a base with random weights: a Llama with two layers and grouped attention, if no other is named."""
    torch.manual_seed(0)
    maker = getattr(transformers, BASES[name].maker)
    maker(maker.config_class(**BASES[name].config)).save_pretrained(folder)
    return folder


def variants(base: str = "") -> Iterator[tuple[str, str]]:
    """(method, variant) of everything in `VARIANTS` that the installed PEFT has and this base is for."""
    peft_types = {str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING} & (BASES[base].methods or VARIANTS.keys())
    return ((method, name) for method in sorted(VARIANTS.keys() & peft_types) for name in VARIANTS[method])


SCALES = {"randlora@encoder-decoder": 0.005}
"""Of trained numbers that leave a base able to do something; others take the default."""


def make(model: Any, group: str, folder: Path) -> None:
    """Save an honest adapter. Errors are PEFT's own: this method cannot be made on this base."""
    method, base, variant = method_of(group), BASES[base_kind_of(group)], group.partition("/")[2]
    kind = next(kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind.value == method)
    fields = renamed(VARIANTS[method][variant], base.names) | base.fields.get(method, {})
    if method == "XLORA":
        experts = {str(number): folder.parent / f"{folder.name}-expert-{number}" for number in range(2)}
        for targets, expert in zip((QV, QO), experts.values(), strict=True):
            config = peft.LoraConfig(r=4, target_modules=renamed(targets, base.names), task_type=base.task)
            make_from(copy.deepcopy(model), config, expert)
        paths = {number: str(path) for number, path in experts.items()}
        fields = {"hidden_size": model.config.hidden_size, "xlora_size": 16, "adapters": paths}
    scale = SCALES.get(group.partition("/")[0], 0.05)
    make_from(model, PEFT_TYPE_TO_CONFIG_MAPPING[kind](task_type=base.task, **fields), folder, scale=scale)


def make_from(model: Any, config: Any, folder: Path, *, scale: float = 0.05) -> None:
    """Inject this configuration into the model, move every trained number, and save. The model is used up."""
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(model, config)
    shake(wrapped, scale)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.abs_()
    wrapped.peft_config["default"].base_model_name_or_path = "base"
    wrapped.save_pretrained(folder)
