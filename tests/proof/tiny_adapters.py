"""A tiny random model of each of many architectures, and adapters on it that have one property each.

PEFT makes the adapters; some are then changed, as a broken export or another training tool would. Engines that are
installed are asked about them (`engine_classes`, `llama_cpp_models`).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from registry import compat
from registry.adapters import safetensors
from registry.adapters.peft import config, describe
from registry.bases import BaseSpec
from registry.client.local.base_folder import base_spec_from
from registry.engines import facts as engine_facts
from registry.evaluation.verdicts import add_up
from tests import samples
from tests.samples import CONFIG, WEIGHTS

SIZES: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("LlamaConfig", {}),
    "MistralForCausalLM": ("MistralConfig", {}),
    "Qwen2ForCausalLM": ("Qwen2Config", {}),
    "Qwen3ForCausalLM": ("Qwen3Config", {}),
    "GemmaForCausalLM": ("GemmaConfig", {"tie_word_embeddings": True}),
    "Gemma2ForCausalLM": ("Gemma2Config", {"tie_word_embeddings": True, "query_pre_attn_scalar": 32}),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", {"tie_word_embeddings": True}),
    "Phi3ForCausalLM": ("Phi3Config", {}),
    "GraniteForCausalLM": ("GraniteConfig", {}),
    "CohereForCausalLM": ("CohereConfig", {"tie_word_embeddings": True}),
    "Olmo2ForCausalLM": ("Olmo2Config", {}),
    "NemotronForCausalLM": ("NemotronConfig", {}),
    "Exaone4ForCausalLM": ("Exaone4Config", {}),
    "Starcoder2ForCausalLM": ("Starcoder2Config", {}),
    "StableLmForCausalLM": ("StableLmConfig", {}),
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256}),
    "ApertusForCausalLM": ("ApertusConfig", {}),
    "Ernie4_5ForCausalLM": ("Ernie4_5Config", {}),
    "Glm4ForCausalLM": ("Glm4Config", {"partial_rotary_factor": 0.5}),
    "SmolLM3ForCausalLM": ("SmolLM3Config", {}),
    "HunYuanDenseV1ForCausalLM": ("HunYuanDenseV1Config", {}),
    "FalconForCausalLM": ("FalconConfig", {"head_dim": None, "num_key_value_heads": None}),
    "PhiForCausalLM": ("PhiConfig", {"num_key_value_heads": 2, "head_dim": None}),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", {"num_key_value_heads": None, "head_dim": None}),
}
"""Architecture → the configuration's class and what differs from `SIZES`."""
RANK = 8
EMBEDDINGS, HEADS = ("embed_tokens", "embed_in", "wte", "word_embeddings"), ("lm_head", "embed_out")
SIZES_OF_FACTS = ("facts_version", "parameters", "size_bytes", "tensors", "layers")
"""Facts that no rule about classes reads."""

Tensors = dict[str, torch.Tensor]
Fields = dict[str, Any]


def _fields_of(model: Any) -> dict[str, Fields]:
    """Case → what PEFT is told; absent where the model has no such module."""
    leaves = {path.rpartition(".")[2] for path, _ in model.named_modules()}
    table, head = (next((name for name in names if name in leaves), "") for names in (EMBEDDINGS, HEADS))
    linear = sorted({path.rpartition(".")[2] for path, module in model.named_modules()
                     if type(module).__name__ in ("Linear", "Conv1D")} - {head})  # fmt: skip
    cases: dict[str, Fields] = {
        "linear": {}, "embedding": {"target_modules": [table]}, "head": {"target_modules": [head]},
        "rslora": {"use_rslora": True}, "dora": {"use_dora": True}, "bias": {"bias": "all"}, "rank-64": {"r": 64},
        "rank-pattern": {"rank_pattern": {linear[0]: 4}}, "alpha-pattern": {"alpha_pattern": {linear[0]: 64}},
        "saved-head": {"modules_to_save": [head]}, "trained-tokens": {"trainable_token_indices": {table: [5, 6]}},
        "alora": {"alora_invocation_tokens": [7, 8, 9]}, "pattern": {"target_modules": rf".*\.({'|'.join(linear)})"},
    }  # fmt: skip
    names = {"q_proj": "q-only", "v_proj": "v-only", "up_proj": "up-only", "o_proj": "o-only"}
    cases |= {case: {"target_modules": [name]} for name, case in names.items() if name in linear}
    return cases


def _without(tensors: Tensors, mark: str) -> Tensors:
    lost = next(name for name in tensors if mark in name)
    return {name: tensor for name, tensor in tensors.items() if name != lost}


def _taller(tensors: Tensors) -> Tensors:
    first = next(name for name in tensors if "lora_B" in name)
    return tensors | {first: torch.cat([tensors[first], tensors[first][:1]])}


def _renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {re.sub(old, new, name): tensor for name, tensor in tensors.items()}


CHANGES: Mapping[str, Callable[[Tensors], Tensors]] = {
    "no-b": lambda tensors: _without(tensors, "lora_B"),
    "wrong-shape": _taller,
    "other-size": lambda tensors: {n: torch.cat([t, t], 1) if "lora_A" in n else t for n, t in tensors.items()},
    "wrong-prefix": _renamed(r"^base_model\.model\.", "backbone."),
    "deeper": _renamed(r"\.1\.", ".7."),
    "unknown-module": lambda tensors: tensors | _renamed(r"\.[a-z0-9_]+\.lora_", ".no_such_proj.lora_")(tensors),
    "adapter-name": _renamed(r"\.weight$", ".default.weight"),
}
"""Case → what is changed about the tensors of `linear`."""
WRITTEN: Mapping[str, Fields] = {
    **{f"no-{name}": {name: None} for name in ("r", "lora_alpha", "target_modules")}, "wrong-rank": {"r": 4},
}  # fmt: skip
"""Case → what is written in its configuration; None: the field is not there."""


def make(architecture: str, folder: Path) -> dict[str, Path]:
    """The base in `folder/base`, and its adapters by case."""
    kind, changes = ARCHITECTURES[architecture]
    fields = {name: value for name, value in {**SIZES, **changes}.items() if value is not None}
    torch.manual_seed(1)
    model = getattr(transformers, architecture)(getattr(transformers, kind)(**fields)).float().eval()
    model.save_pretrained(folder / "base")
    words = samples.tokenizer(SIZES["vocab_size"])
    (folder / "base" / "tokenizer.json").write_text(json.dumps(words))
    (folder / "base" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    adapters: dict[str, Path] = {}
    for case, case_fields in _fields_of(model).items():
        bare = getattr(transformers, architecture).from_pretrained(folder / "base", dtype=torch.float32)
        torch.manual_seed(2)
        how = peft.LoraConfig(**{"r": RANK, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM",
                                 "init_lora_weights": False} | case_fields)  # fmt: skip
        wrapped = peft.get_peft_model(bare, how)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_magnitude_vector" not in name and (parameter.requires_grad and "lora_" not in name):
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        wrapped.save_pretrained(str(folder / case), save_embedding_layers=False)
        adapters[case] = folder / case
    tensors, written = load_file(folder / "linear" / WEIGHTS), json.loads((folder / "linear" / CONFIG).read_text())
    for case in (*CHANGES, *WRITTEN):
        adapters[case] = shutil.copytree(folder / "linear", folder / case)
        if case in WRITTEN:
            fields = {name: value for name, value in (written | WRITTEN[case]).items()
                      if value is not None or name not in WRITTEN[case]}  # fmt: skip
            (folder / case / CONFIG).write_text(json.dumps(fields))
        else:
            changed = {name: tensor.contiguous().clone() for name, tensor in CHANGES[case](tensors).items()}
            save_file(changed, folder / case / WEIGHTS)
    return adapters


def facts_of(adapter: Path, base: Path) -> dict[str, Any]:
    """The facts as stored with a version, with those of the base and the verdict `compat` on it."""
    spec: BaseSpec = base_spec_from(base, "tiny")[0]
    written = config.read_config((adapter / CONFIG).read_bytes())
    lora = describe(written, safetensors.read_bytes((adapter / WEIGHTS).read_bytes(), file=WEIGHTS))
    fits = str(add_up(compat.check_fit(lora, spec)))
    facts = engine_facts.to_stored(engine_facts.of_lora(lora, compat=fits, base=spec))
    return {name: value for name, value in facts.items() if name not in SIZES_OF_FACTS}
