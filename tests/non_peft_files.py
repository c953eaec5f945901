"""Adapters of other tools as bytes, without their libraries: torchtune, mlx-lm, GGUF; and a tiny image pipeline."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import samples
from tests.samples import Base, Tensor

GGUF_MAGIC = b"GGUF"
_GGUF_TYPES = {"F32": 0, "F16": 1}
TORCHTUNE = {"q_proj": "attn.q_proj", "k_proj": "attn.k_proj", "v_proj": "attn.v_proj", "o_proj": "attn.output_proj"}
LLAMA_CPP = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}


def text(value: str | bytes) -> bytes:
    """A GGUF string: its length in eight bytes, then itself."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def field(key: str, value: Any) -> bytes:
    """A GGUF field: text, a 32-bit number, or bytes that are written as they are (type and value)."""
    if isinstance(value, bytes):
        return text(key) + value
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    code, kind = ("<f", 6) if isinstance(value, float) else ("<I", 4)
    return text(key) + struct.pack("<I", kind) + struct.pack(code, value)


def gguf(
    tensors: Mapping[str, Tensor], fields: Mapping[str, Any] | None = None, *, version: int = 3, tail: bytes = b""
) -> bytes:
    """A GGUF file; shapes are given as [rows, columns] and written the other way round."""
    entries = (
        {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 16.0} if fields is None else fields
    )
    infos, data = b"", b""
    for seed, (name, (dtype, shape, content)) in enumerate(tensors.items()):
        values = samples.values(dtype, shape, seed) if content is None else content
        data += b"\0" * (-len(data) % 32)
        sides = b"".join(struct.pack("<Q", side) for side in reversed(shape))
        infos += text(name) + struct.pack("<I", len(shape)) + sides
        infos += struct.pack("<IQ", _GGUF_TYPES[dtype], len(data))
        data += values
    head = GGUF_MAGIC + struct.pack("<IQQ", version, len(tensors), len(entries))
    head += b"".join(field(key, value) for key, value in entries.items()) + infos
    return head + b"\0" * (-len(head) % 32) + data + b"\0" * (-len(data) % 32) + tail


def pairs(base: Base, names: Mapping[str, str], prefix: str, ends: tuple[str, str], rank: int = 4) -> dict[str, Tensor]:
    """A pair for each of the base's projections in `names`, under the tool's own path."""
    tensors: dict[str, Tensor] = {}
    for path, (rows, columns) in base.linears.items():
        leaf = path.rpartition(".")[2]
        if leaf in names:
            layer = path.split(".")[2]
            at = f"{prefix}{layer}.{names[leaf]}"
            tensors[f"{at}{ends[0]}"] = ("F32", (rank, columns), None)
            tensors[f"{at}{ends[1]}"] = ("F32", (rows, rank), None)
    return tensors


def torchtune(base: Base) -> dict[str, bytes]:
    tensors = pairs(base, TORCHTUNE, "layers.", (".lora_a.weight", ".lora_b.weight"))
    config = {"r": 4, "lora_alpha": 8, "target_modules": sorted(TORCHTUNE)}
    return {"adapter_0.safetensors": samples.safetensors(tensors), samples.CONFIG: json.dumps(config).encode()}


def mlx(base: Base) -> dict[str, bytes]:
    straight = pairs(base, {n: f"self_attn.{n}" for n in TORCHTUNE}, "model.layers.", (".lora_a", ".lora_b"))
    tensors = {name: (dtype, shape[::-1], None) for name, (dtype, shape, _) in straight.items()}
    config = {"fine_tune_type": "lora", "num_layers": 2, "model": base.name,
              "lora_parameters": {"rank": 4, "scale": 20.0, "dropout": 0.0}}  # fmt: skip
    return {"adapters.safetensors": samples.safetensors(tensors), samples.CONFIG: json.dumps(config).encode()}


def gguf_adapter(base: Base) -> dict[str, bytes]:
    tensors = pairs(base, LLAMA_CPP, "blk.", (".weight.lora_a", ".weight.lora_b"))
    return {"adapter.gguf": gguf(tensors)}


def pipeline(folder: Path, width: int = 32) -> Path:
    """The folder of a diffusers pipeline with one attention block of a UNet."""
    at = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    linears = {"to_q": (width, width), "to_k": (width, 24), "to_v": (width, 24), "to_out.0": (width, width)}
    tensors: dict[str, Tensor] = {f"{at}.{leaf}.weight": ("F32", shape, None) for leaf, shape in linears.items()}
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    config = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 24, "_diffusers_version": "0.42.1"}
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(samples.safetensors(tensors))
    return folder


def kohya(width: int = 32, metadata: Mapping[str, str] | None = None) -> bytes:
    """A kohya file for `pipeline`'s attention, alpha 2 at rank 4."""
    at = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_"
    tensors: dict[str, Tensor] = {}
    for leaf, columns in (("to_q", width), ("to_k", 24)):
        tensors[f"{at}{leaf}.lora_down.weight"] = ("F32", (4, columns), None)
        tensors[f"{at}{leaf}.lora_up.weight"] = ("F32", (width, 4), None)
        tensors[f"{at}{leaf}.alpha"] = ("F32", (), struct.pack("<f", 2.0))
    return samples.safetensors(tensors, metadata)
