"""Image adapters under today's diffusers names, by diffusers' own converters, and proof that nothing was lost.

`Pipeline.lora_state_dict` keeps or drops tensors that it does not understand. So every name of the result must belong
to a component of diffusers, and the squared norm of all updates, scale · B·A, must equal the original's to one part in
10^4. alpha / rank is folded into B for loaders that ignore alpha.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
from safetensors.torch import load_file, save_file
from torch import Tensor

from registry.adapters import read
from registry.adapters.formats import COMFY, IMAGE_COMPONENTS
from registry.adapters.formats.facts import FileFacts
from registry.adapters.read import NonPeftContents
from registry.bases import BaseSpec
from registry.client.local.adapter_folder import read_adapter
from registry.compat.paths import Paths, layers_per_block
from registry.merging import renaming
from registry.merging.conversions import Converted, refusal
from registry.worker.conversions import to_canonical
from registry.worker.conversions.request import DETERMINISTIC, ConversionRequest, serve
from registry.worker.model import image_updates
from registry.worker.model.image_updates import DOWN, UP
from registry.worker.sandbox import program

PIPELINES = {
    "sd": "StableDiffusionPipeline", "sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline", "flux": "FluxPipeline", "sd3": "StableDiffusion3Pipeline",
    "wan": "WanPipeline", "qwen-image": "QwenImagePipeline",
}  # fmt: skip
"""The base's family → the class whose `lora_state_dict` reads its adapters."""
FILE = "pytorch_lora_weights.safetensors"
FLUX_WIDTH = 3072
"""The width of Flux in diffusers' converter of fused layers (0.42, `_convert_kohya_flux_lora_to_diffusers`)."""
TOLERANCE = 1e-4


def convert(request: ConversionRequest) -> Converted:
    """Write the image adapter under the names of diffusers."""
    folder, out = read_adapter(Path(request.source)), Path(request.out)
    if not isinstance(folder.contents, NonPeftContents):
        raise refusal("this adapter is for a language model")
    file = folder.contents.file
    weights = read.weights_of(folder.files).path
    family = request.base.model_type or file.family
    if family not in PIPELINES:
        raise refusal(f"diffusers' converter for {family or 'an unknown family'} is not known here")
    tensors_in = load_file(folder.path / weights)
    tensors = _flat_names(tensors_in, file, request.base)
    converter = "their paths" if tensors else f"diffusers {diffusers.__version__}"
    if not tensors:
        renamed = _flux_names(tensors_in, file) if family == "flux" else tensors_in
        tensors = _converted(getattr(diffusers, PIPELINES[family]), renamed, request.base)
    _require_all(tensors_in, tensors, file, request.base)
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, out / FILE, metadata={"format": "pt"})
    to_canonical.copy_others(folder, out)
    pairs = sum(name.endswith(UP) for name in tensors)
    return Converted(
        message=f"{len(file.modules)} modules of {file.format} became {pairs} of diffusers, by {converter}",
        modules=pairs, rank=file.max_rank, tensors=len(tensors), renamed=len(tensors),
        error=_difference(tensors_in, tensors, file),
    )  # fmt: skip


def _flat_names(tensors: dict[str, Tensor], file: FileFacts, base: BaseSpec) -> dict[str, Tensor]:
    """The tensors of a file of OneTrainer: the pipeline's paths with underscores. Empty for other files.

    diffusers (0.42, `_convert_mixture_state_dict_to_diffusers`) gives all modules outside the attentions one name.
    """
    paths, result = Paths(file.format, base.modules), {}
    if not any(module.path.startswith("lora_transformer_") for module in file.modules):
        return {}
    for module in file.modules:
        matches = paths.of(module.path)
        if matches is None or len(matches) != 1 or not module.a or module.scale is None:
            raise refusal(f"{module.path} names no module of {base.name}, or is no pair with a scale")
        result[f"{matches[0]}.lora_A.weight"] = tensors[module.a]
        result[f"{matches[0]}.lora_B.weight"] = to_canonical.scale_tensor(tensors[module.b], module.scale)
    return result


def _flux_names(tensors: dict[str, Tensor], file: FileFacts) -> dict[str, Tensor]:
    """Name Flux's own paths as diffusers reads them: after `diffusion_model.`, with lora_down and lora_up for A and B.

    A control adapter (Black Forest Labs' names with scales of norms) has a converter of its own.
    """
    if file.format != COMFY and "image.no_control_norms" not in file.problems:
        return tensors
    ends = {".lora_A.weight": ".lora_down.weight", ".lora_B.weight": ".lora_up.weight"}
    renamed = {}
    for name, tensor in tensors.items():
        end = next((end for end in ends if name.endswith(end)), "")
        path = name.removeprefix("diffusion_model.").removesuffix(end)
        renamed[f"diffusion_model.{path}{ends.get(end, '')}"] = tensor
    return renamed


def _converted(pipeline: Any, tensors: dict[str, Tensor], base: BaseSpec) -> dict[str, Tensor]:
    layers = layers_per_block(base.modules)
    # kohya's files for SDXL number the blocks of the original model.
    blocks = {"unet_config": SimpleNamespace(layers_per_block=layers)} if layers else {}
    try:
        try:
            state = pipeline.lora_state_dict(dict(tensors), return_alphas=True, **blocks)
        except TypeError:
            state = pipeline.lora_state_dict(dict(tensors))
    except DETERMINISTIC as e:
        block = base.modules.get("transformer.single_transformer_blocks.0.attn.to_q")
        reason = program.error_text(e)[:300]
        if isinstance(e, AssertionError) and block is not None and block.in_features != FLUX_WIDTH:
            reason = f"its converter is for Flux models of width {FLUX_WIDTH}, and {base.name} has {block.in_features}"
        raise refusal(f"diffusers cannot convert it: {reason}") from e
    converted, alphas = state if isinstance(state, tuple) else (state, {})
    by_path = {_without_half(name.removesuffix(".alpha")): float(alpha) for name, alpha in (alphas or {}).items()}
    result: dict[str, Tensor] = {}
    for name, tensor in converted.items():
        alpha = by_path.pop(_without_half(name), None) if name.endswith(UP) else None
        if alpha is not None:
            tensor = to_canonical.scale_tensor(tensor, alpha / tensor.shape[1])
        result[renaming.modern(name)] = tensor
    if by_path:
        raise refusal(f"diffusers gives {len(by_path)} alphas without a pair, such as that of {min(by_path)}")
    return result


def _without_half(name: str) -> str:
    """The path of a pair, from the name of a half or from what its alpha is called by.

    diffusers (0.42, `_get_alpha_name`) names an alpha by the down half; where `.lora.` stands in that name, by what
    comes before it.
    """
    end = next((end for end in (*DOWN, *UP) if name.endswith(end)), "")
    return name.removesuffix(end).removesuffix(".lora")


def _require_all(before: dict[str, Tensor], after: dict[str, Tensor], file: FileFacts, base: BaseSpec) -> None:
    stray = [name for name in after if not _is_loaded(name, base)]
    if stray or not after:
        example = stray[0] if stray else "all"
        raise refusal(f"diffusers cannot load {len(stray)} of {len(after)} tensors by their names, such as {example}")
    difference = _difference(before, after, file)
    if difference > TOLERANCE:
        raise refusal(f"diffusers' converter lost part of the adapter: its size changed by {difference:.3g}")


def _is_loaded(name: str, base: BaseSpec) -> bool:
    """Whether diffusers finds a module for the tensor: it ignores one whose path the component does not have.

    It drops the `text_model.` of a text encoder that does not have it (0.42, `_load_lora_into_text_encoder`).
    """
    end = next((end for end in (*DOWN, *UP) if name.endswith(end)), "")
    component, path = name.partition(".")[0], name.removesuffix(end)
    paths = {path, path.replace(".text_model.", ".", 1)}
    return component in IMAGE_COMPONENTS and (
        component not in base.components or not end or not paths.isdisjoint(base.modules)
    )


def _difference(before_tensors: dict[str, Tensor], after_tensors: dict[str, Tensor], file: FileFacts) -> float:
    """The relative change of the norm of the whole update."""
    before = sum(update.squared_norm for _, update in image_updates.stated(file, before_tensors.__getitem__))
    after = sum(image_updates.unscaled(after_tensors).values())
    return abs(after - before) / before if before else abs(after)


if __name__ == "__main__":
    serve(convert)
