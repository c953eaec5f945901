"""Makes tiny bases and adapters as bytes, without torch or numpy, the same ones on every machine.

    base = samples.llama()                             a folder of files: config, weights, tokenizer, template
    files = samples.lora(base, rank=8)                 an adapter for it: path → bytes
    samples.write(files, folder)                       write either to disk
    samples.safetensors({"a": ("F32", (2, 3), None)})  a weights file with random values
    samples.raw_safetensors(header_text, data)         a weights file, valid or not (see tests/bad_files.py)

Invariants
- Equal arguments make equal bytes; other seeds make other bytes.
- Values are small, finite and never all zero, so that an adapter changes what its base answers.
- The weights load in transformers and PEFT: the shapes and names are those of the real architectures.
"""

from __future__ import annotations

import json
import math
import random
import struct
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

Shape = tuple[int, ...]
Tensor = tuple[str, Shape, bytes | None]
Files = dict[str, bytes]

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
_ELEMENT_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


# ------------------------------------------------------------------ weights files
def values(dtype: str, shape: Shape, seed: int = 5, scale: float = 0.05) -> bytes:
    """Random values between -scale and scale, as the bytes of one tensor. Whole-number types count upwards."""
    count, rng = math.prod(shape), random.Random(f"{seed} {dtype} {shape}")
    if dtype not in ("F64", "F32", "F16", "BF16"):
        width = _ELEMENT_BYTES.get(dtype, 1)
        return b"".join((i % 100).to_bytes(width, "little") for i in range(count))
    numbers = [scale * (2 * rng.random() - 1) for _ in range(count)]
    if dtype == "F64":
        return array("d", numbers).tobytes()
    if dtype == "F16":
        return struct.pack(f"<{count}e", *numbers)
    single = array("f", numbers).tobytes()
    return single if dtype == "F32" else b"".join(single[i + 2 : i + 4] for i in range(0, len(single), 4))


def constant(dtype: str, shape: Shape, value: float) -> bytes:
    """One value, repeated; also NaN and infinity."""
    code = {"F32": "<f", "F64": "<d", "F16": "<e"}.get(dtype)
    packed = struct.pack(code, value) if code else struct.pack("<f", value)[2:]
    return packed * math.prod(shape)


def safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, seed: int = 5) -> bytes:
    """A weights file with these tensors: name → (dtype, shape, bytes or None for random values)."""
    header: dict[str, Any] = {"__metadata__": dict(metadata if metadata is not None else {"format": "pt"})}
    data = bytearray()
    for number, (name, (dtype, shape, content)) in enumerate(sorted(tensors.items())):
        body = values(dtype, shape, seed * 1000 + number) if content is None else content
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(body)]}
        data += body
    return raw_safetensors(json.dumps(header, separators=(",", ":")), bytes(data))


def raw_safetensors(header: str | bytes | Mapping[str, Any], data: bytes = b"", *, length: int | None = None) -> bytes:
    """A weights file with exactly this header, right or wrong; `length` lies about the header's size."""
    if isinstance(header, Mapping):
        header = json.dumps(header)
    raw = header.encode() if isinstance(header, str) else header
    if length is None:
        raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensors_of(weights: bytes) -> dict[str, Tensor]:
    """The tensors of a weights file that `safetensors` made, to change one and write them again."""
    (length,) = struct.unpack("<Q", weights[:8])
    header = json.loads(weights[8 : 8 + length])
    header.pop("__metadata__", None)
    start = 8 + length
    return {
        name: (e["dtype"], tuple(e["shape"]), weights[start + e["data_offsets"][0] : start + e["data_offsets"][1]])
        for name, e in header.items()
    }


def write(files: Mapping[str, bytes], folder: Path) -> Path:
    """The files on the disk, in this folder, which is made if it is not there."""
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder


# -------------------------------------------------------------------------- bases
@dataclass(frozen=True, eq=False)
class Base:
    """A tiny base: its folder's files, and its linear modules as path → (out_features, in_features)."""

    name: str
    config: dict[str, Any]
    files: Files
    linears: dict[str, tuple[int, int]] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        return write(self.files, folder)


@lru_cache(maxsize=32)
def llama(
    name: str = "tiny-llama",
    *,
    hidden: int = 64,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 128,
    vocab: int = 512,
    tied: bool = False,
    dtype: str = "F32",
    seed: int = 1,
    shards: int = 1,
) -> Base:
    """A Llama with random weights. All sizes count elements; `heads` must divide `hidden`."""
    size = hidden // heads
    linears: dict[str, tuple[int, int]] = {}
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for n in range(layers):
        at = f"model.layers.{n}"
        for leaf, rows, columns in (
            ("self_attn.q_proj", heads * size, hidden), ("self_attn.k_proj", kv_heads * size, hidden),
            ("self_attn.v_proj", kv_heads * size, hidden), ("self_attn.o_proj", hidden, heads * size),
            ("mlp.gate_proj", intermediate, hidden), ("mlp.up_proj", intermediate, hidden),
            ("mlp.down_proj", hidden, intermediate),
        ):  # fmt: skip
            linears[f"{at}.{leaf}"] = (rows, columns)
        shapes |= {f"{at}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
    if not tied:
        linears["lm_head"] = (vocab, hidden)
    shapes |= {f"{path}.weight": shape for path, shape in linears.items()}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": size, "hidden_act": "silu", "max_position_embeddings": 256,
        "rms_norm_eps": 1e-06, "tie_word_embeddings": tied, "attention_bias": False, "mlp_bias": False,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0, "dtype": _torch_name(dtype), "transformers_version": "5.24.0",
    }  # fmt: skip
    return _base(name, config, shapes, linears, dtype, seed, shards, vocab)


@lru_cache(maxsize=8)
def gpt2(
    name: str = "tiny-gpt2", *, hidden: int = 64, layers: int = 3, vocab: int = 512, seed: int = 1, prefix: bool = True
) -> Base:
    """A GPT-2: Conv1D matrices are stored [in, out]. `prefix` false leaves out `transformer.`, as some files do."""
    shapes: dict[str, Shape] = {"wte.weight": (vocab, hidden), "wpe.weight": (256, hidden)}
    linears: dict[str, tuple[int, int]] = {}
    shapes |= {"ln_f.weight": (hidden,), "ln_f.bias": (hidden,)}
    for n in range(layers):
        for leaf, columns, rows in (
            ("attn.c_attn", hidden, 3 * hidden), ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, 4 * hidden), ("mlp.c_proj", 4 * hidden, hidden),
        ):  # fmt: skip
            linears[f"transformer.h.{n}.{leaf}"] = (rows, columns)
            shapes |= {f"h.{n}.{leaf}.weight": (columns, rows), f"h.{n}.{leaf}.bias": (rows,)}
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{n}.{norm}.weight": (hidden,), f"h.{n}.{norm}.bias": (hidden,)}
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": vocab, "n_embd": hidden,
        "n_layer": layers, "n_head": 4, "n_positions": 256, "n_inner": None, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-05, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
        "dtype": "float32", "transformers_version": "5.24.0",
    }  # fmt: skip
    if prefix:
        shapes = {f"transformer.{name_}": shape for name_, shape in shapes.items()}
    return _base(name, config, shapes, linears, "F32", seed, 1, vocab)


def _base(
    name: str, config: dict[str, Any], shapes: dict[str, Shape], linears: dict[str, tuple[int, int]],
    dtype: str, seed: int, shards: int, vocab: int,
) -> Base:  # fmt: skip
    tensors: dict[str, Tensor] = {}
    for number, (tensor, shape) in enumerate(sorted(shapes.items())):
        is_norm = tensor.endswith("weight") and ("norm" in tensor or "ln_" in tensor)
        body = constant(dtype, shape, 1.0) if is_norm else values(dtype, shape, seed * 1000 + number, 0.08)
        tensors[tensor] = (dtype, shape, body)
    files = {
        "config.json": json.dumps(config, indent=2).encode(),
        "tokenizer.json": json.dumps(tokenizer(vocab)).encode(),
        "tokenizer_config.json": json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
             "pad_token": "<pad>", "unk_token": "<unk>", "model_max_length": 256}).encode(),
        "chat_template.jinja": TEMPLATE.encode(),
    }  # fmt: skip
    if shards == 1:
        files["model.safetensors"] = safetensors(tensors)
        return Base(name, config, files, linears)
    where: dict[str, str] = {}
    for n in range(shards):
        part = {tensor: tensors[tensor] for tensor in sorted(tensors)[n::shards]}
        file = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
        files[file] = safetensors(part)
        where |= dict.fromkeys(part, file)
    size = sum(len(content or b"") for _, _, content in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    return Base(name, config, files, linears)


def tokenizer(vocab: int = 512) -> dict[str, Any]:
    """A word-level tokenizer of `vocab` entries that the tokenizers library loads."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(vocab - 4))]
    special = [
        {"id": i, "content": words[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True} for i in range(4)
    ]  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"},
    }  # fmt: skip


def _torch_name(dtype: str) -> str:
    return {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}[dtype]


# ----------------------------------------------------------------------- adapters
def lora(
    base: Base,
    *,
    rank: int = 8,
    alpha: float | None = 16,
    targets: Iterable[str] = ("q_proj", "v_proj"),
    seed: int = 5,
    dtype: str = "F32",
    dora: bool = False,
    rslora: bool = False,
    config: Mapping[str, Any] | None = None,
    change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> Files:
    """A LoRA adapter for this base: `adapter_config.json`, `adapter_model.safetensors`, `README.md`.

    `config` replaces or (with the value `...`) removes fields of the configuration; `change` gets the tensors
    and returns the ones to write.
    """
    names = tuple(targets)
    tensors: dict[str, Tensor] = {}
    for path, (rows, columns) in base.linears.items():
        if not any(path == name or path.endswith(f".{name}") for name in names):
            continue
        at = f"base_model.model.{path}"
        tensors[f"{at}.lora_A.weight"] = (dtype, (rank, columns), None)
        tensors[f"{at}.lora_B.weight"] = (dtype, (rows, rank), None)
        if dora:
            tensors[f"{at}.lora_magnitude_vector"] = (dtype, (rows,), constant(dtype, (rows,), 0.5))
    fields: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base.name, "r": rank,
        "lora_alpha": alpha, "lora_dropout": 0.0, "target_modules": list(names), "bias": "none", "use_dora": dora,
        "use_rslora": rslora, "fan_in_fan_out": "gpt2" in base.config.get("model_type", ""), "inference_mode": True,
        "init_lora_weights": True, "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
        "layers_to_transform": None, "peft_version": "0.21.2", **(config or {}),
    }  # fmt: skip
    if alpha is None:
        fields.pop("lora_alpha")
    changed = dict(change(tensors)) if change else tensors
    return {
        CONFIG: json.dumps({k: v for k, v in fields.items() if v is not ...}, indent=2).encode(),
        WEIGHTS: safetensors(changed, seed=seed),
        "README.md": f"# {base.name} adapter {seed}\n".encode(),
    }
