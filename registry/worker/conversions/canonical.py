"""The canonical form: B takes the scale, alpha = rank, one rank for all modules, no rsLoRA and no patterns.

    scale · B·A  =  (scale · B)·A,   and zeros beside A and B change nothing

Invariants
- A is untouched but for rows of zeros, which raise a module's rank to the largest one.
- Saved modules, biases, trained tokens and the names of targets stay as they are.
- scale · B is computed in 64 bits and rounded once; what the file's dtype cannot hold exactly is stored in 32 bits.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from registry.adapters.peft import LoraSpec, ModuleUpdate
from registry.adapters.peft.names import PREFIX
from registry.client.local.folder import Folder, read_folder
from registry.files import CONFIG, WEIGHTS, WEIGHTS_ENDINGS
from registry.merging.conversions import Converted
from registry.worker.conversions import folder as folders
from registry.worker.conversions.request import ConversionRequest, serve

Tensors = dict[str, Tensor]


def convert(request: ConversionRequest) -> Converted:
    folder = read_folder(Path(request.source))
    spec = folder.contents.lora
    tensors, widened = folded(spec, folders.load(folder.path / WEIGHTS))
    config = json.loads((folder.path / CONFIG).read_bytes())
    folders.save(Path(request.out), tensors, plain_config(config, spec.rank))
    copy_others(folder, Path(request.out))
    scales = sorted({m.scale for m in spec.modules})
    span = f"{scales[0]:g}" if len(scales) == 1 else f"{scales[0]:g} to {scales[-1]:g}"
    padded = sum(m.rank < spec.rank for m in spec.modules)
    notes = [f"{padded} modules padded with zeros to rank {spec.rank}"] if padded else []
    notes += [f"{widened} tensors stored in 32 bits, because their dtype cannot hold the product exactly"] * bool(
        widened
    )
    return Converted(
        message=f"scale {span} folded into {len(spec.modules)} modules of rank {spec.rank}",
        modules=len(spec.modules), rank=spec.rank, tensors=len(tensors), widened=widened, error=0.0, notes=tuple(notes),
    )  # fmt: skip


def folded(spec: LoraSpec, tensors: Tensors) -> tuple[Tensors, int]:
    """The tensors with every scale in B and every pair at the adapter's rank; how many had to be widened."""
    result, widened = dict(tensors), 0
    for module in spec.modules:
        a, b, bias = names_of(module, tensors)
        for name in (b, bias):
            if name:
                result[name] = scaled(tensors[name], module.scale)
                widened += result[name].dtype != tensors[name].dtype
        if module.rank < spec.rank:
            result[a] = _padded(tensors[a], (-1, module.rank, *module.a_shape[1:]), spec.rank).flatten(0, 1)
            result[b] = _padded(result[b], (module.b_shape[0], module.rank, -1), spec.rank)
            result[b] = result[b].reshape(module.b_shape[0], -1, *module.b_shape[2:])
    return result, widened


def names_of(module: ModuleUpdate, tensors: Tensors) -> tuple[str, str, str]:
    """The names of A, B and B's bias (empty if it has none) in the file."""
    at = f"{PREFIX}{module.path}{'.base_layer' * max(module.order, 0)}."
    for a, b in (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"), ("lora_A", "lora_B")):
        if at + a in tensors:
            bias = f"{at}lora_B.bias"
            return at + a, at + b, bias if bias in tensors else ""
    raise KeyError(f"no pair for {module.path}")


def scaled(tensor: Tensor, scale: float) -> Tensor:
    """scale · tensor, in the tensor's dtype if that holds it exactly, else in 32 bits."""
    exact = tensor.to(torch.float64) * scale
    narrow = exact.to(tensor.dtype)
    if tensor.dtype in (torch.float32, torch.float64) or torch.equal(narrow.to(torch.float64), exact):
        return narrow
    return exact.to(torch.float32)


def _padded(tensor: Tensor, shape: tuple[int, ...], rank: int) -> Tensor:
    """The tensor in this shape, whose second side is the rank, with zeros up to the new rank.

    One matrix is a block of one expert: A is [experts, rank, in], B is [out, rank, experts].
    """
    whole = tensor.float().reshape(shape)
    missing = torch.zeros((whole.shape[0], rank - whole.shape[1], *whole.shape[2:]))
    return torch.cat([whole, missing], 1).to(tensor.dtype)


def plain_config(config: dict[str, Any], rank: int) -> dict[str, Any]:
    """The configuration with alpha = rank and nothing that scales."""
    changed = {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    return config | changed


def copy_others(folder: Folder, out: Path) -> None:
    """Everything of the original that is neither weights nor configuration: tokenizer, golden answers, license."""
    for file in folder.files:
        if file.path != CONFIG and not file.path.endswith(WEIGHTS_ENDINGS):
            shutil.copyfile(folder.path / file.path, out / file.path)


if __name__ == "__main__":
    sys.exit(serve(convert))
