"""The canonical form: B takes the scale, alpha = rank, one rank for all modules, no rsLoRA and no patterns.

    scale · B·A  =  (scale · B)·A,   and zeros beside A and B change nothing

Of convolutions in groups, PEFT divides the rank by the groups: the common rank is a multiple of each.
Everything else stays: saved modules, biases, trained tokens, the names of targets. scale · B is computed in 64 bits and
rounded once; a tensor whose dtype cannot hold it exactly is stored in 32 bits.
"""

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from registry.adapters.peft import LoraSpec, ModuleUpdate
from registry.adapters.peft.names import PREFIX
from registry.client.local.adapter_folder import read_adapter
from registry.client.local.folder import Folder
from registry.merging.conversions import Converted
from registry.versions.files import CONFIG, WEIGHTS, WEIGHTS_ENDINGS
from registry.worker.conversions.request import ConversionRequest, serve
from registry.worker.merge.adapters import save_adapter

Tensors = dict[str, Tensor]


def convert(request: ConversionRequest) -> Converted:
    """Write the adapter in canonical form."""
    folder, out = read_adapter(Path(request.source)), Path(request.out)
    spec = folder.peft.lora
    groups = math.lcm(*(module.groups for module in spec.modules))
    rank = -(-spec.rank // groups) * groups
    tensors, widened = fold_scales(spec, load_file(folder.path / WEIGHTS), rank)
    config = json.loads((folder.path / CONFIG).read_bytes())
    plain = {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    save_adapter(out, tensors, config | plain)
    copy_others(folder, out)
    scales = sorted({m.scale for m in spec.modules})
    span = f"{scales[0]:g}" if len(scales) == 1 else f"{scales[0]:g} to {scales[-1]:g}"
    padded = sum(m.rank < rank for m in spec.modules)
    notes = [f"{padded} modules padded with zeros to rank {rank}"] if padded else []
    if widened:
        notes.append(f"{widened} tensors stored in 32 bits, because their dtype cannot hold the product exactly")
    return Converted(
        message=f"scale {span} folded into {len(spec.modules)} modules of rank {rank}",
        modules=len(spec.modules), rank=rank, tensors=len(tensors), widened=widened, error=0.0, notes=tuple(notes),
    )  # fmt: skip


def fold_scales(spec: LoraSpec, tensors: Tensors, rank: int) -> tuple[Tensors, int]:
    """Return the tensors with every scale in B and every pair at this rank, and how many were widened."""
    result, widened = dict(tensors), 0
    for module in spec.modules:
        a, b, bias = names_of(module, tensors)
        for name in (b, bias):
            if name:
                result[name] = scale_tensor(tensors[name], module.scale)
                widened += result[name].dtype != tensors[name].dtype
        if module.rank < rank:
            share, new_share = module.rank // module.groups, rank // module.groups
            result[a] = _padded(tensors[a], (-1, share, *module.a_shape[1:]), new_share).flatten(0, 1)
            result[b] = _padded(result[b], (module.b_shape[0], share, -1), new_share)
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


def scale_tensor(tensor: Tensor, scale: float) -> Tensor:
    """Compute scale · tensor, in the tensor's dtype if that holds it exactly, else in 32 bits."""
    exact = tensor.to(torch.float64) * scale
    narrow = exact.to(tensor.dtype)
    if tensor.dtype in (torch.float32, torch.float64) or torch.equal(narrow.to(torch.float64), exact):
        return narrow
    return exact.to(torch.float32)


def _padded(tensor: Tensor, shape: tuple[int, ...], rank: int) -> Tensor:
    """Pad the tensor with zeros to the new rank, the second side of this shape.

    One matrix is a block of one expert: A is [experts, rank, in], B is [out, rank, experts]. So are the groups of a
    convolution in A.
    """
    whole = tensor.reshape(shape)
    result = whole.new_zeros((whole.shape[0], rank, *whole.shape[2:]))
    result[:, : whole.shape[1]] = whole
    return result


def copy_others(folder: Folder, out: Path) -> None:
    """Copy what is neither weights nor configuration: tokenizer, golden answers, license."""
    for file in folder.files:
        if file.path != CONFIG and not file.path.endswith(WEIGHTS_ENDINGS):
            shutil.copyfile(folder.path / file.path, out / file.path)


if __name__ == "__main__":
    serve(convert)
