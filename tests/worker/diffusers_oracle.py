"""What diffusers did with an image adapter, by the layers' own numbers; and what the worker says of it.

The oracle shares nothing with the worker: it loads the file with `load_lora_weights` of a pipeline that it makes
itself, and compares scale · B · A, magnitudes and biases of each layer with what the case means, on unchanged weights.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file

from registry.evaluation.thresholds import Thresholds
from registry.findings import Finding
from registry.worker.model.image import Pipeline
from registry.worker.smoke.image import ImageTest
from tests.worker.image_cases import Case, Update

WEIGHT_NAME = "adapter.safetensors"
TOLERANCE = 1e-4
Models = dict[str, Any]


def make_pipeline(kind: str, parts: Models, options: dict[str, Any]) -> Any:
    """A pipeline of these models, with `options` in the places of others."""
    return getattr(diffusers, kind)(**{**options, **parts})


def ask(case: Case, parts: Models, pipeline: tuple[str, dict[str, Any]], folder: Path) -> str:
    """`exact`; `wrong N/M`: N of M modules lack their update, or have another or one too many; or the exception."""
    (folder / WEIGHT_NAME).write_bytes(case.file)
    loaded = copy.deepcopy(parts)
    try:
        make_pipeline(pipeline[0], loaded, pipeline[1]).load_lora_weights(str(folder), weight_name=WEIGHT_NAME)
    except Exception as e:  # whatever diffusers raises is its answer
        return type(e).__name__
    tensors = load_file(folder / WEIGHT_NAME)
    expected = {update.module: update for update in case.meant}
    biased = any(name.endswith("lora_B.bias") for name in tensors)
    wrong, layers = 0, {}
    for component, model in loaded.items():
        weights = parts[component].state_dict()
        for path, module in model.named_modules():
            if getattr(module, "lora_A", None):
                layers[f"{component}.{path}"] = (module, weights[f"{path}.weight"])
    for path in layers.keys() | expected.keys():
        if path in layers and path not in expected:
            wrong += not _does_nothing(layers[path][0])
        else:
            wrong += path not in layers or not _is_right(*layers[path], expected[path], tensors, biased)
    if case.meant and not wrong:
        return "exact"
    return f"wrong {wrong}/{len(layers.keys() | expected.keys())}"


def _does_nothing(module: Any) -> bool:
    """Whether the layer that the file has no tensors for is as PEFT begins it, with B = 0."""
    (name,) = module.lora_A
    b = module.lora_B[name]
    return not (b.weight.is_meta or b.weight.any() or b.bias is not None or name in module.lora_magnitude_vector)


def _is_right(module: Any, weight: Any, update: Update, tensors: dict[str, Any], biased: bool) -> bool:
    (name,) = module.lora_A
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    base = module.get_base_layer().weight
    bias = module.lora_B[name].bias
    magnitude = module.lora_magnitude_vector[name].weight if name in module.lora_magnitude_vector else None
    if any(value is not None and value.is_meta for value in (a, b, base, bias, magnitude)):
        return False
    first, last = update.rows or (0, len(tensors[update.b]))
    product = update.scale * tensors[update.b][first:last].flatten(1).float() @ tensors[update.a].flatten(1).float()
    own = module.scaling[name] * b.flatten(1).float() @ a.flatten(1).float()
    if own.shape != product.shape or base.shape != weight.shape or not torch.equal(base, weight):
        return False
    if (magnitude is None) != (not update.magnitude) or biased != (bias is not None):
        return False
    if magnitude is not None and not torch.equal(magnitude.flatten(), tensors[update.magnitude].flatten()):
        return False
    if bias is not None:
        stated = tensors.get(update.b.replace(".lora_B.weight", ".lora_B.bias"))
        if stated is None or not torch.equal(bias, stated):
            return False
    return bool(torch.allclose(own, product, atol=TOLERANCE, rtol=TOLERANCE))


def worker_says(case: Case, parts: Models, kind: str, folder: Path) -> list[Finding]:
    """The findings of the verdict `engine`; of weights that are not finite those of the test."""
    (folder / WEIGHT_NAME).write_bytes(case.file)
    models = copy.deepcopy(parts)
    originals = {f"{part}.{name}": p for part, model in models.items() for name, p in model.named_parameters()}
    base = Pipeline(case.base, getattr(diffusers, kind), models, originals, 0.0)
    test = ImageTest(base, folder, Thresholds())
    if test.check_weights():
        test.check_load()
    return test.result.findings if test.result.engine is None else test.result.engine
