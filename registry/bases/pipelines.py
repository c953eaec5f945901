"""The spec of an image model: a diffusers pipeline's folder, whose models each have a folder of their own.

Schedulers, image encoders and the VAE take no adapters and are left out. Paths of modules begin with their component,
as the names in a diffusers adapter do: `unet.mid_block…`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from registry import bases, names
from registry.adapters.formats import IMAGE_COMPONENTS
from registry.adapters.safetensors import Header
from registry.bases import modules as base_modules
from registry.bases.fingerprints import Fingerprints
from registry.bases.modules import Facts, ModuleShape
from registry.digest import Digest
from registry.errors import Invalid

DENOISERS = ("unet", "transformer", "transformer_2", "prior")
COMPONENTS = tuple(name for name in IMAGE_COMPONENTS if name != "controlnet")
"""Folders of a pipeline whose models take adapters."""

_NOTES = frozenset(
    {"torch_dtype", "dtype", "transformers_version", "name_or_path", "sample_size", "gradient_checkpointing"}
)
_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_CLASSES = {
    "FluxTransformer2DModel": "flux", "SD3Transformer2DModel": "sd3", "QwenImageTransformer2DModel": "qwen-image",
    "WanTransformer3DModel": "wan", "UNet2DConditionModel": "sd",
}  # fmt: skip

Component = tuple[Mapping[str, Any], Sequence[Header]]


def pipeline_spec(name: str, index: Mapping[str, Any], components: Mapping[str, Component]) -> bases.BaseSpec:
    """The spec of the pipeline with these components: each its configuration and its weight files' headers.

    `Invalid` (BASE_INVALID) if no component denoises, or if a component's files hold no tensor.
    """
    names.base_name(name)
    denoiser = next((c for c in DENOISERS if c in components), None)
    if denoiser is None:
        raise Invalid("BASE_INVALID", f"{name}: a pipeline needs one of the folders {', '.join(DENOISERS[:2])}")
    modules: dict[str, ModuleShape] = {}
    covered: dict[str, Any] = {}
    parameters, size, dtypes = 0, 0, {}
    for component, (config, headers) in sorted(components.items()):
        logical = base_modules.logical(bases.all_tensors(headers), FACTS)
        modules |= {f"{component}.{path}": m for path, m in base_modules.modules(logical, FACTS).items()}
        covered[component] = {
            "shapes": sorted([t.name, list(t.shape)] for t in logical),
            "config": {k: v for k, v in config.items() if k == "_class_name" or not (k.startswith("_") or k in _NOTES)},
        }
        parameters += sum(t.elements for t in logical)
        size += sum(h.size_bytes for h in headers)
        dtypes[component] = logical[0].dtype if logical else ""
    config = components[denoiser][0]
    return bases.BaseSpec(
        name=name,
        architecture=str(index.get("_class_name") or config.get("_class_name") or "")[:128],
        model_type=family_of(config),
        dtype=dtypes[denoiser], parameters=parameters, weights_bytes=size, modules=bases.check_modules(name, modules),
        components=tuple(sorted(components)),
        fingerprints=Fingerprints(architecture=Digest.of(json.dumps(covered, sort_keys=True).encode())),
    )  # fmt: skip


def family_of(config: Mapping[str, Any]) -> str:
    """`sd1`, `sdxl`, `flux` … by the denoiser's class and, for a UNet, the width of its cross-attention."""
    family = _CLASSES.get(str(config.get("_class_name") or ""), "")
    width = config.get("cross_attention_dim")
    return _WIDTHS.get(width, family) if family == "sd" and type(width) is int else family


FACTS = Facts(
    model_type="", is_head_model=False, hidden=0, intermediate=0, heads=0, kv_heads=0, head_size=0, vocab=0,
    quantization="", bits=0, is_image=True,
)  # fmt: skip
"""Of a component only shapes count; its paths are those of its own files."""
