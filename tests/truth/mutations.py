"""Everything that can be wrong with an adapter's tensors and with its configuration, one thing at a time.

A mutation takes an honest adapter's tensors and configuration and gives changed ones. Its name is a stable part of a
case's id: `drop-one:lora_A.weight` loses the first such tensor, `r:null` writes null for the field `r`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from tests.truth.methods import renamed

Tensors = dict[str, torch.Tensor]
Written = dict[str, Any]
Mutated = tuple[str, Tensors, Written]

DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.float8_e4m3fn)
LABELS = frozenset({"base_model_name_or_path", "revision", "peft_version", "auto_mapping", "inference_mode"})
"""Fields that change nothing about the tensors."""


def kind_of(name: str) -> str:
    """What a tensor is, without its module: `lora_A.weight`; of a saved module its last name, `lm_head.weight`."""
    parts = [re.sub(r"^\d+$", "N", part) for part in name.split(".")]
    return ".".join(parts[-2:] if parts[-1] in ("weight", "bias", "N") else parts[-1:])


def of_tensors(tensors: Tensors, written: Written, names_here: Mapping[str, str]) -> Iterator[Mutated]:
    """Mutations of each kind of tensor, of the first tensor of its kind, and of the file as a whole.

    `names_here`: see `methods.BaseKind`.
    """
    kinds: dict[str, list[str]] = {}
    for name in tensors:
        kinds.setdefault(kind_of(name), []).append(name)
    for kind, names in kinds.items():
        for change, changed in _of_kind(tensors, names):
            yield f"{change}:{kind}", changed, written
    for change, changed in _of_file(tensors, names_here):
        yield change, changed, written


def _of_kind(tensors: Tensors, names: list[str]) -> Iterator[tuple[str, Tensors]]:
    first = next((name for name in names if tensors[name].numel()), names[0])
    first_tensor = tensors[first]
    yield "drop-one", _without(tensors, names[:1])
    if len(names) > 1:
        yield "drop-kind", _without(tensors, names)
        yield "drop-half", _without(tensors, names[1::2])
    shapes: dict[str, torch.Tensor] = {"unsqueezed": first_tensor.unsqueeze(0), "trailing": first_tensor.unsqueeze(-1)}
    for axis in range(first_tensor.dim()):
        size = first_tensor.shape[axis]
        shapes[f"longer-{axis}"] = torch.cat([first_tensor, first_tensor.narrow(axis, 0, 1)], axis)
        if size > 1:
            shapes[f"shorter-{axis}"] = first_tensor.narrow(axis, 0, size - 1)
        if size > 1 and size % 2 == 0:
            shapes[f"halved-{axis}"] = first_tensor.narrow(axis, 0, size // 2)
    if first_tensor.dim() == 2 and first_tensor.shape[0] != first_tensor.shape[1]:
        shapes["transposed"] = first_tensor.T
    if first_tensor.dim() > 1:
        shapes["flat"] = first_tensor.flatten()
    for change, tensor in shapes.items():
        yield change, tensors | {first: tensor}
    if first_tensor.is_floating_point():
        yield "zero-one", tensors | {first: first_tensor * 0}
        yield "zero-kind", tensors | {name: tensors[name] * 0 for name in names}
        for word in ("nan", "inf"):
            filled = first_tensor.clone()
            filled.view(-1)[0] = float(word)
            yield word, tensors | {first: filled}
        yield "integers-one", tensors | {first: first_tensor.to(torch.int32)}


def _of_file(tensors: Tensors, names_here: Mapping[str, str]) -> Iterator[tuple[str, Tensors]]:
    if not tensors:
        return
    first = next(iter(tensors))
    query, key, base_weight = (renamed(name, names_here) for name in (
        "q_proj", "k_proj", "base_model.model.model.layers.0.mlp.gate_proj.weight"))  # fmt: skip
    layer = re.compile(rf"\.{renamed('layers', names_here)}\.\d+\.")
    last_layer = max((name for name in tensors if layer.search(name)), default="")
    yield "extra:unknown", tensors | {f"{first.rpartition('.')[0]}.unknown_part": torch.ones(4)}
    yield "extra:base-weight", tensors | {base_weight: torch.ones(80, 64)}
    yield "extra:prompt", tensors | {"prompt_embeddings": torch.ones(4, 64)}
    copies = {name.replace(f".{query}.", f".{key}."): t for name, t in tensors.items() if f".{query}." in name}
    if copies:
        yield "extra:module", tensors | copies
        yield "renamed:module", {name.replace(f".{query}.", f".{key}."): t for name, t in tensors.items()}
    if last_layer:
        lost = next(iter(layer.findall(last_layer)), "")
        yield "drop:layer", {name: t for name, t in tensors.items() if lost not in name}
        deeper = {name.replace(lost, re.sub(r"\d+", "7", lost)): t for name, t in tensors.items() if lost in name}
        yield "extra:layer", tensors | deeper
    yield "renamed:prefix", {name.removeprefix("base_model.model."): t for name, t in tensors.items()}
    yield "renamed:adapter", {re.sub(r"\.(weight|bias)$", r".default.\1", name): t for name, t in tensors.items()}
    yield "empty", {}
    yield "zero:all", {name: t * 0 for name, t in tensors.items()}
    for dtype in DTYPES:
        yield f"dtype:{str(dtype).removeprefix('torch.')}", {name: t.to(dtype) for name, t in tensors.items()}


def of_lora(tensors: Tensors, written: Written) -> Iterator[Mutated]:
    """The few mutations that every architecture is tried with."""
    first = next(name for name in tensors if "lora_B" in name or "lora_embedding_B" in name)
    tensor = tensors[first]
    yield "wrong-rank", tensors, written | {"r": written["r"] + 1}
    yield "wrong-shape", tensors | {first: torch.cat([tensor, tensor[:1]])}, written
    yield "other-size", {name: _doubled(name, t) for name, t in tensors.items()}, written
    yield "lost-tensor", _without(tensors, [first]), written
    yield "extra-tensor", tensors | {re.sub(r"\.\d+\.", ".77.", first, count=1) + ".more": tensor}, written
    yield "zero", {name: t * 0 for name, t in tensors.items()}, written
    yield "nan", tensors | {first: tensor * float("nan")}, written


def _doubled(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A factor of an adapter for a base that is twice as wide."""
    axis = 1 if "_A" in name else 0
    return torch.cat([tensor, tensor], axis) if "lora_" in name and tensor.dim() > axis else tensor


def _without(tensors: Tensors, names: list[str]) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


# ------------------------------------------------------------------ configuration
def of_configuration(
    tensors: Tensors, written: Written, fields: Mapping[str, Any], *, names: Mapping[str, str], other_task: str
) -> Iterator[Mutated]:
    """Mutations of each of these fields (name → its default), then combinations that contradict each other.

    `names`: see `methods.BaseKind`. `other_task`: one that the base is not for.
    """
    for field in sorted(fields):
        value = written.get(field, fields[field])
        if field in written:
            yield f"{field}:missing", tensors, {k: v for k, v in written.items() if k != field}
        for change, changed in _values(field, value):
            yield f"{field}:{change}", tensors, written | {field: changed}
    for change, more in _contradictions(written, renamed("layers", names), other_task):
        yield f"config:{change}", tensors, written | renamed(more, names)


def _values(field: str, value: Any) -> Iterator[tuple[str, Any]]:
    if value is not None:
        yield "null", None
    yield "object", {"x": 1}
    if field in LABELS:
        yield "number", 3
        return
    if not isinstance(value, str):
        yield "text", "x"
    if not isinstance(value, bool):
        yield "true", True
    if isinstance(value, bool):
        yield "flipped", not value
        yield "as-text", str(value).lower()
        yield "number", 2
    elif isinstance(value, int | float):
        yield from {"negative": -1, "zero": 0, "more": value + 1, "double": value * 2, "huge": 10**9}.items()
        yield from {"fraction": value + 0.5, "as-text": str(value), "list": [value]}.items()
    elif isinstance(value, str):
        yield from {"unknown": "unknown", "empty": "", "list": [value]}.items()
    elif isinstance(value, list):
        yield from {"empty": [], "unknown": ["nothing_here"], "mixed": [*value, 1], "number": 1}.items()
    elif isinstance(value, dict):
        yield from {"empty": {}, "list": [1], "number": 1, "unknown": {"nothing_here": 1}}.items()
    else:
        yield from {"number": 1, "zero": 0, "list": ["nothing_here"], "empty": []}.items()


def _contradictions(written: Written, layers: str, other_task: str) -> Iterator[tuple[str, Written]]:
    yield "unknown-field", {"no_such_field": 1}
    yield "another-method", {"peft_type": "LORA" if written.get("peft_type") != "LORA" else "LOHA"}
    yield "another-task", {"task_type": other_task}
    yield "no-task", {"task_type": None}
    if "layers_pattern" in written:
        yield "layers-pattern-alone", {"layers_pattern": [layers], "layers_to_transform": None}
        yield "layers-beside-pattern", {"target_modules": r".*q_proj", "layers_to_transform": [0]}
        yield "layer-beyond", {"layers_to_transform": [0, 9]}
    if "target_modules" in written:
        yield "target-pattern", {"target_modules": r".*\.(q_proj|v_proj)"}
        yield "target-broken-pattern", {"target_modules": r"*[q_proj"}
        yield "target-all-linear", {"target_modules": "all-linear"}
        yield "target-fewer", {"target_modules": ["q_proj"]}
        yield "target-more", {"target_modules": [*(written.get("target_modules") or []), "k_proj", "gate_proj"]}
        yield "target-excluded", {"exclude_modules": ["q_proj"]}
    if "modules_to_save" in written:
        yield "saved-unannounced", {"modules_to_save": ["lm_head"]}
    if "rank_pattern" in written:
        yield "rank-pattern", {"rank_pattern": {"q_proj": 3}}
        yield "rank-pattern-text", {"rank_pattern": {"q_proj": "3"}}
    if "alpha_pattern" in written:
        yield "alpha-pattern-text", {"alpha_pattern": {"q_proj": "3"}}
        yield "alpha-pattern-zero", {"alpha_pattern": {"q_proj": 0, "v_proj": 0}}
    if "trainable_token_indices" in written:
        yield "tokens-unannounced", {"trainable_token_indices": [1]}
        yield "tokens-beyond", {"trainable_token_indices": [5000]}
    for init in ("pissa", "PiSSA", "olora", "gaussian", "eva", "loftq", "unknown"):
        if "init_lora_weights" in written:
            yield f"init-{init}", {"init_lora_weights": init}
