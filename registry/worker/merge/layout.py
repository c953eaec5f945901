"""`OutputLayout`: the files of the fused base, tensor by tensor, and what its configuration says.

Invariants
- Shards, order and names are the base's; only what must differ differs: copies of replicated layers, a head that is
  tied no more, unpacked tensors in place of packed ones.
- Input and output embedding stay one only while the adapter leaves both alone or trained them as one.
- The configuration is the base's, field by field, but for what the weights no longer are.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from registry.bases import BaseSpec
from registry.errors import Invalid
from registry.files import BASE_CONFIG, BASE_WEIGHTS_INDEX
from registry.worker.merge import targets
from registry.worker.merge.adapters import Adapter
from registry.worker.merge.shards import Fill, OutputTensor
from registry.worker.merge.targets import Changes
from registry.worker.model import fingerprints
from registry.worker.model.weights import Stored, Weights

HEAD = "lm_head.weight"
_UNPACKED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(slots=True)
class OutputLayout:
    """File name → its tensors in order. `notes` are said to whoever asked for the fused base."""

    files: dict[str, list[OutputTensor]]
    config: dict[str, Any]
    config_changed: bool = False
    notes: list[str] = field(default_factory=list)


def plan(
    weights: Weights, spec: BaseSpec, adapter: Adapter, config: Mapping[str, Any], changes: Changes, *, dequantize: bool
) -> OutputLayout:
    """`Invalid` (RECIPE_INVALID) when an adapter changes a tensor that cannot be changed."""
    layout = OutputLayout({}, copy.deepcopy(dict(config)))
    remaining = dict(changes)
    if spec.tied:
        _tie_or_untie(layout, weights, adapter, remaining)
    copies = targets.layer_map(adapter)
    for stored in weights.in_order():
        if stored.is_side and dequantize:
            continue
        pieces = layout.files.setdefault(stored.path.name, [])
        for name in _names(stored, copies):
            makes = tuple(remaining.pop(name, ()))
            pieces.append(_piece(layout, weights, stored, _file_name(stored, name), dequantize)._replace(changes=makes))
    if HEAD in remaining:
        _add_head(layout, weights, remaining.pop(HEAD))
    if remaining:
        raise Invalid("RECIPE_INVALID", f"the base has no tensor {sorted(remaining)[0]}, which the adapter changes")
    if copies:
        _deepen(layout, copies, spec)
    if dequantize and layout.config.pop("quantization_config", None) is not None:
        layout.config_changed = True
        layout.notes.append(f"the base was packed ({spec.quantization}) and is unpacked in what was written")
    return layout


def write_texts(folder: Path, base: Path, plan: OutputLayout) -> None:
    """config.json, and the index where there are several files."""
    if plan.config_changed:
        (folder / BASE_CONFIG).write_text(json.dumps(plan.config, indent=2) + "\n", "utf-8")
    else:
        (folder / BASE_CONFIG).write_bytes((base / BASE_CONFIG).read_bytes())
    index = base / BASE_WEIGHTS_INDEX
    if not index.is_file():
        return
    where = {piece.name: name for name, pieces in plan.files.items() for piece in pieces}
    old = json.loads(index.read_bytes())
    if old.get("weight_map") == where:
        (folder / BASE_WEIGHTS_INDEX).write_bytes(index.read_bytes())
        return
    total = sum(piece.size_bytes for pieces in plan.files.values() for piece in pieces)
    new = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / BASE_WEIGHTS_INDEX).write_text(json.dumps(new, indent=2) + "\n", "utf-8")


# ------------------------------------------------------------------ names and layers
def _names(stored: Stored, copies: list[int]) -> Iterator[str]:
    """The model's names of this tensor in the new base: one, or one for each copy of its layer."""
    layer = targets.layer_of(stored.name)
    if not copies or layer is None:
        yield stored.name
        return
    yield from (targets.moved(stored.name, new) for new, old in enumerate(copies) if old == layer)


def _file_name(stored: Stored, name: str) -> str:
    """The name in the file of what the model calls `name`: with the same prefix, or lack of one, as the base's."""
    layer = targets.layer_of(name)
    return stored.info.name if layer is None else targets.moved(stored.info.name, layer)


def _deepen(layout: OutputLayout, copies: list[int], spec: BaseSpec) -> None:
    for config in (layout.config, layout.config.get("text_config")):
        if not isinstance(config, dict):
            continue
        for name, value in config.items():
            if name in ("num_hidden_layers", "n_layer", "num_layers"):
                config[name] = len(copies)
            elif isinstance(value, list) and len(value) == spec.layers and name != "architectures":
                config[name] = [value[old] for old in copies]
    layout.config_changed = True
    layout.notes.append(f"{spec.layers} layers are written out as {len(copies)}")


# ------------------------------------------------------------------ tied embeddings
def _embedding(weights: Weights) -> Stored:
    tables = [s for s in weights.by_file_name.values() if not s.is_side and s.name.endswith(targets.TABLES)]
    if len(tables) != 1:
        raise Invalid("RECIPE_INVALID", "the base's token embedding is not found by its name, and its head is tied")
    return tables[0]


def _tie_or_untie(layout: OutputLayout, weights: Weights, adapter: Adapter, changes: Changes) -> None:
    """Leave head and embedding one, or make them two: then `changes` has an entry for the head."""
    table = _embedding(weights).name
    lora = adapter.lora
    whole = {f"{piece.path}.{piece.name}" for piece in lora.full}
    pairs = {f"{module.path}.weight" for module in lora.modules}
    if {HEAD, table} <= whole and _equal(adapter, table):
        changes.pop(HEAD)
        return
    if HEAD not in changes and not ({table} & (whole | pairs)):
        return  # trained rows count for both, as PEFT has it
    if HEAD not in changes and adapter.contents.config.ensure_weight_tying:
        return
    changes.setdefault(HEAD, [])
    for config in (layout.config, layout.config.get("text_config")):
        if isinstance(config, dict) and (config is layout.config or "tie_word_embeddings" in config):
            config["tie_word_embeddings"] = False
    layout.config_changed = True
    layout.notes.append("input and output embedding were one and are two now: the adapter changes them apart")


def _equal(adapter: Adapter, table: str) -> bool:
    by_name = {f"{name.path}.{name.leaf}": stored for name, stored in adapter.others()}
    return torch.equal(adapter.raw(by_name[HEAD]), adapter.raw(by_name[table]))


def _add_head(layout: OutputLayout, weights: Weights, makes: list[Any]) -> None:
    """A head of its own behind the last tensor, made from the embedding."""
    table = _embedding(weights)
    last = list(layout.files)[-1]
    piece = OutputTensor(HEAD, table.info.dtype, table.info.shape, table.path, table.data_start + table.info.start)
    layout.files[last].append(piece._replace(changes=tuple(makes)))


# ------------------------------------------------------------------ packed tensors
def _piece(layout: OutputLayout, weights: Weights, stored: Stored, name: str, dequantize: bool) -> OutputTensor:
    start = stored.data_start + stored.info.start
    if not dequantize or stored.info.dtype in _PLAIN:
        return OutputTensor(name, stored.info.dtype, stored.info.shape, stored.path, start)
    shape, values = fingerprints.unpacking(weights, stored)
    if values is None or len(shape) != 2:
        message = f"{stored.info.name}: weights packed by {weights.quantization} are not unpacked here"
        raise Invalid("RECIPE_INVALID", message, next_step="fuse into the original weights: --onto BASE")
    written = str(layout.config.get("dtype") or layout.config.get("torch_dtype") or "bfloat16")
    dtype = _UNPACKED.get(written.removeprefix("torch."), "BF16")
    return OutputTensor(name, dtype, shape, stored.path, start, fill=_filler(stored, shape, values))


def _filler(stored: Stored, shape: tuple[int, ...], values: fingerprints.Values) -> Fill:
    columns, dtype = shape[1], fingerprints.DTYPES[stored.info.dtype]
    per_byte = 2 if stored.info.dtype == "U8" else 1
    if columns % per_byte:
        raise Invalid("RECIPE_INVALID", f"{stored.info.name}: rows of an odd length share bytes")

    def fill(first: int, block: Tensor) -> None:
        size = len(block) * columns // per_byte * dtype.itemsize
        with open(stored.path, "rb") as file:
            file.seek(stored.data_start + stored.info.start + first * columns // per_byte * dtype.itemsize)
            raw = torch.frombuffer(bytearray(file.read(size)), dtype=dtype)
        block.copy_(values(raw, first * columns).view(len(block), columns))

    return fill
