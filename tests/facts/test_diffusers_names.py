"""Every module that a diffusers pipeline with a LoRA loader has, under the name that diffusers' writer gives it."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import pytest

from registry.adapters import formats
from registry.adapters.formats import DIFFUSERS
from tests.domain.test_formats import facts_of

diffusers = pytest.importorskip("diffusers", reason="the images extra (diffusers) is not installed")
torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow
SIZES: dict[str, dict[str, Any]] = {"HiDreamImageTransformer2DModel": {
    "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 1,
    "attention_head_dim": 8, "num_attention_heads": 2, "caption_channels": [16, 16], "text_emb_dim": 16,
    "num_routed_experts": 2, "num_activated_experts": 1, "axes_dims_rope": (4, 2, 2), "max_resolution": (8, 8),
    "llama_layers": [0, 1]}}  # fmt: skip
"""Class → what it needs to be built; all others have defaults."""
LAYERS = ("Linear", "Conv1d", "Conv2d", "Conv3d")


def classes() -> dict[type, str]:
    """Each class of diffusers' models that a pipeline with a loader takes → the component that it is."""
    by_class: dict[type, str] = {}
    pipelines: Iterator[Any] = (getattr(diffusers, name, None) for name in dir(diffusers) if name.endswith("Pipeline"))
    for pipeline in pipelines:
        components = getattr(pipeline, "_lora_loadable_modules", ())
        hints = typing.get_type_hints(pipeline.__init__) if components else {}
        for component in (c for c in components if c in hints and not c.startswith("text_encoder")):
            kinds = typing.get_args(hints[component]) or (hints[component],)
            by_class |= {kind: component for kind in kinds if issubclass(kind, diffusers.ModelMixin)}
    return by_class


def modules_of(kind: type) -> Iterator[str]:
    with torch.device("meta"):
        model = kind(**SIZES.get(kind.__name__, {}))
    return (path for path, module in model.named_modules() if type(module).__name__ in LAYERS)


def test_the_modules_of_every_class_with_a_loader_are_names_of_diffusers() -> None:
    wrong, by_class = [], classes()
    for kind, component in by_class.items():
        for path in modules_of(kind):
            names = [f"{component}.{path}.lora_{letter}.weight" for letter in "AB"]
            facts = facts_of(dict.fromkeys(names, ("F32", (2, 2), None)))
            if (facts.format, facts.components, facts.modules[0].path) != (
                DIFFUSERS, (component,), f"{component}.{path}"
            ):  # fmt: skip
                wrong.append(f"{kind.__name__}: {names[0]}: {facts.format} {facts.components}")
    assert wrong == []
    assert len(by_class) >= 40
    assert {"unet", "transformer", "connectors"} <= {*by_class.values()}


def test_every_model_that_a_loader_takes_is_known_by_name() -> None:
    from diffusers.loaders import lora_pipeline

    components = {c for kind in vars(lora_pipeline).values() for c in getattr(kind, "_lora_loadable_modules", ())}
    assert components >= {"unet", "transformer", "text_encoder", "text_encoder_2"}
    assert components - {*formats.IMAGE_COMPONENTS} == set()
