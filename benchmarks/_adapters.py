"""Adapters of a chosen size for benchmarks: real headers and configurations, random finite weights, a fitting base.

Example
    >>> make(Path("a0"), 30 * 10**6, seed=1)      # a folder with adapter_model.safetensors of about 30 MB
"""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path
from typing import Any

from tests import samples

HIDDEN = 2048
LAYERS = 16
BASE = "bench-llama"
_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
_CHUNK_BYTES = 2**20
_FINITE = int.from_bytes(b"\xff\xa7" * (_CHUNK_BYTES // 2), "little")
"""Keeps sign, mantissa and two bits of the exponent of 16-bit floats: numbers of at most 0.03, as trained ones are."""


def write_base(folder: Path) -> Path:
    """A base that all of them fit. Only its shapes matter: its weights are a hole in a file."""
    small = samples.llama(BASE, hidden=64, layers=LAYERS, heads=8, kv_heads=8, intermediate=64, vocab=64, dtype="F16")
    grown = {"hidden_size": HIDDEN, "head_dim": HIDDEN // 8}
    files = {name: data for name, data in small.files.items() if not name.endswith(".safetensors")}
    samples.write({**files, "config.json": json.dumps({**small.config, **grown}).encode()}, folder)
    weights = next(data for name, data in small.files.items() if name.endswith(".safetensors"))
    header, start = {}, 0
    for name, (dtype, shape, _) in samples.tensors_of(weights).items():
        attention = ".self_attn." in name
        sides = [HIDDEN if attention or (side == 64 and _is_hidden(name, n)) else side for n, side in enumerate(shape)]
        end = start + 2 * math.prod(sides)
        header[name] = {"dtype": dtype, "shape": sides, "data_offsets": [start, end]}
        start = end
    head = _head(header)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(head)
        file.truncate(len(head) + start)
    return folder


def _is_hidden(name: str, side: int) -> bool:
    """Whether this side of a weight outside attention is as long as the hidden state."""
    return "norm" in name or side == (0 if "down_proj" in name else 1)


def _head(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def make(folder: Path, size_bytes: int, seed: int, revision: str = "") -> None:
    """An adapter folder whose weights have about `size_bytes`: the rank is what makes it big.

    Adapters of one `revision` have the same configuration, as those that one script trains.
    """
    folder.mkdir(parents=True)
    per_rank = LAYERS * len(_TARGETS) * 2 * HIDDEN * 2
    rank = max(1, size_bytes // per_rank)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": BASE, "r": rank,
        "lora_alpha": rank, "lora_dropout": 0.0, "target_modules": list(_TARGETS), "bias": "none",
        "inference_mode": True, "peft_version": "0.21.2",
    }  # fmt: skip
    (folder / samples.CONFIG).write_text(json.dumps({**config, "revision": revision or f"r{seed}"}, indent=2))
    header, start = {}, 0
    for layer in range(LAYERS):
        for target in _TARGETS:
            at = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            for side, shape in (("A", (rank, HIDDEN)), ("B", (HIDDEN, rank))):
                end = start + rank * HIDDEN * 2
                header[f"{at}.lora_{side}.weight"] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
                start = end
    source = random.Random(seed)
    with open(folder / samples.WEIGHTS, "wb") as file:
        file.write(_head(header))
        while start > 0:
            start -= file.write(_finite(source.randbytes(min(_CHUNK_BYTES, start))))


def _finite(data: bytes) -> bytes:
    """These bytes as 16-bit floats that are small numbers."""
    return (int.from_bytes(data, "little") & _FINITE).to_bytes(len(data), "little")


def stamp(folder: Path) -> None:
    """Make it another adapter, of the same size: its last bytes change, and so does its digest."""
    with open(folder / samples.WEIGHTS, "r+b") as file:
        file.seek(-16, os.SEEK_END)
        file.write(_finite(os.urandom(16)))
