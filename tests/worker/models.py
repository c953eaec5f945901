"""Tiny real bases and adapters for the worker's tests, made with torch, transformers and PEFT on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from registry.findings import Finding
from registry.worker.smoke.structure import Structures

WEIGHTS = "adapter_model.safetensors"
Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def base(folder: Path, *, seed: int = 0, hidden: int = 64) -> Path:
    """A random Llama with two layers and a vocabulary of 512, without a tokenizer."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def pack_in_eight_bits(base_folder: Path, folder: Path) -> None:
    """A copy of the base as bitsandbytes packs it."""
    packing = transformers.BitsAndBytesConfig(load_in_8bit=True)
    transformers.AutoModelForCausalLM.from_pretrained(base_folder, quantization_config=packing).save_pretrained(folder)


def adapter(
    base_folder: Path,
    folder: Path,
    *,
    seed: int = 1,
    change: Change | None = None,
    config: Any = None,
    **settings: Any,
) -> Path:
    """A LoRA adapter with random A and B (or that of another `config`), saved by PEFT; `change` edits its tensors."""
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM.from_pretrained(base_folder)
    written = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | settings
    wrapped = peft.get_peft_model(model, config or peft.LoraConfig(**written))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
            if "lora_magnitude" in name:
                parameter.abs_()
    wrapped.peft_config["default"].base_model_name_or_path = base_folder.name
    wrapped.save_pretrained(folder)
    if change is not None:
        tensors = change(load_file(folder / WEIGHTS))
        save_file({name: t.clone().contiguous() for name, t in tensors.items()}, folder / WEIGHTS)
    return folder


def compare_with_peft(base_folder: Path, folder: Path) -> list[Finding]:
    """What PEFT says about the names and shapes of an adapter's tensors on this base."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(base_folder))
    return Structures(model).compare(folder)


def with_nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return _first_b(tensors, lambda t: t.index_fill(0, torch.tensor([0]), float("nan")))


def with_inf(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return _first_b(tensors, lambda t: t.index_fill(0, torch.tensor([1]), float("inf")))


def huge(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t * 1e30 for name, t in tensors.items()}


def zero_b(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t * 0 if "lora_B" in name else t for name, t in tensors.items()}


def wrong_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("base_model.model.", "base_model.model.other."): t for name, t in tensors.items()}


def poisoned(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An extra tensor that has the name of one of the base's: PEFT copies it over the base without a word."""
    return tensors | {"base_model.model.lm_head.weight": torch.randn(512, 64)}


def _first_b(tensors: dict[str, torch.Tensor], edit: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    first = next(name for name in tensors if "lora_B" in name)
    return tensors | {first: edit(tensors[first])}
