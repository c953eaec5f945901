"""diffusers itself: every image case is loaded into a real pipeline, and its answer compared with the update by hand.

    python -m tests.proof.diffusers_images        asks and writes tests/engines/recorded_diffusers.json

Each row of the record:

    answer           `ok`, or the exception
    modules          modules that have a LoRA layer afterwards
    from_base        largest difference of the models' outputs from those of the bare pipeline
    from_reference   the same from a pipeline whose weights were changed by hand, scale · BA; absent where nothing was

Invariants
- The entry point is `load_lora_weights` of a whole pipeline, as a user calls it; each case has fresh models.
- Outputs of the denoiser and of the text encoder are compared, in 32-bit floats, on fixed inputs.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import diffusers
import torch
import transformers
from safetensors.torch import load_file

from tests import fixtures
from tests.engines.image_cases import CASES, Case

RECORDED = Path(__file__).resolve().parents[1] / "engines" / "recorded_diffusers.json"
NAME = f"diffusers=={diffusers.__version__}"
WEIGHT_NAME = "adapter.safetensors"
Models = dict[str, Any]


def models() -> dict[str, Models]:
    """The three tiny pipelines' models, by component."""
    folder = fixtures.image_bases()
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "sd-tiny" / "unet")
    text = transformers.CLIPTextModel.from_pretrained(folder / "sd-tiny" / "text_encoder")
    flux = diffusers.FluxTransformer2DModel.from_pretrained(folder / "flux-tiny" / "transformer")
    qwen = diffusers.QwenImageTransformer2DModel.from_pretrained(folder / "qwen-image-tiny" / "transformer")
    pipelines = {"sd-tiny": {"unet": unet, "text_encoder": text}, "flux-tiny": {"transformer": flux},
             "qwen-image-tiny": {"transformer": qwen}}  # fmt: skip
    return {name: {part: model.float().eval() for part, model in parts.items()} for name, parts in pipelines.items()}


def pipeline(base: str, parts: Models) -> Any:
    absent = dict.fromkeys(("vae", "tokenizer"))
    if base == "sd-tiny":
        scheduler = diffusers.DDIMScheduler()
        return diffusers.StableDiffusionPipeline(
            **parts, **absent, scheduler=scheduler, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    if base == "qwen-image-tiny":
        return diffusers.QwenImagePipeline(**parts, **absent, text_encoder=None, scheduler=None)
    seconds = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer_2"))
    return diffusers.FluxPipeline(**parts, **absent, **seconds, scheduler=None)


def outputs(base: str, parts: Models) -> torch.Tensor:
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        if base == "sd-tiny":
            words = parts["text_encoder"](torch.arange(3, 10)[None]).last_hidden_state
            latents = torch.randn(1, 4, 16, 16, generator=draw)
            hidden_states = torch.randn(1, 7, 32, generator=draw)
            return torch.cat([parts["unet"](latents, 10, hidden_states).sample.flatten(), words.flatten()])
        if base == "qwen-image-tiny":
            painted = parts["transformer"](
                hidden_states=torch.randn(1, 16, 4, generator=draw), img_shapes=[(1, 4, 4)],
                encoder_hidden_states=torch.randn(1, 7, 32, generator=draw), timestep=torch.tensor([0.5]),
                encoder_hidden_states_mask=torch.ones(1, 7, dtype=torch.bool),
            ).sample  # fmt: skip
            return torch.Tensor(painted.flatten())
        painted = parts["transformer"](
            hidden_states=torch.randn(1, 16, 4, generator=draw),
            encoder_hidden_states=torch.randn(1, 7, 32, generator=draw),
            pooled_projections=torch.randn(1, 32, generator=draw), timestep=torch.tensor([0.5]),
            img_ids=torch.zeros(16, 3), txt_ids=torch.zeros(7, 3),
        ).sample  # fmt: skip
        return torch.Tensor(painted.flatten())


def by_hand(case: Case, parts: Models, file: dict[str, torch.Tensor]) -> Models:
    """The models with scale · B[rows] · A added to the weights that the case means, rows scaled to magnitudes."""
    changed = copy.deepcopy(parts)
    for update in case.meant:
        component, _, path = update.module.partition(".")
        first, last = update.rows or (0, len(file[update.b]))
        product = update.scale * file[update.b][first:last].float() @ file[update.a].float()
        with torch.no_grad():
            weight = changed[component].get_submodule(path).weight
            weight += product
            if update.magnitude:
                weight *= (file[update.magnitude].flatten() / weight.norm(dim=1))[:, None]
    return changed


def ask(case: Case, parts: Models, folder: Path) -> dict[str, Any]:
    (folder / WEIGHT_NAME).write_bytes(case.file)
    loaded = copy.deepcopy(parts)
    bare = outputs(case.base, parts)
    try:
        pipeline(case.base, loaded).load_lora_weights(str(folder), weight_name=WEIGHT_NAME)
        output = outputs(case.base, loaded)
    except Exception as e:  # whatever diffusers raises is its answer
        return {"answer": f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"}
    layers = [module for part in loaded.values() for module in part.modules() if getattr(module, "lora_A", None)]
    row: dict[str, Any] = {"answer": "ok", "modules": len(layers), "from_base": _distance(output, bare)}
    if case.meant:
        expected = outputs(case.base, by_hand(case, parts, load_file(folder / WEIGHT_NAME)))
        row["from_reference"] = _distance(output, expected)
    return row


def _distance(first: torch.Tensor, other: torch.Tensor) -> float | str:
    difference = float((first - other).abs().max())
    return float(f"{difference:.2g}") if difference == difference else "nan"


def run(folder: Path) -> dict[str, Any]:
    """Case → what diffusers did with it."""
    diffusers.utils.logging.set_verbosity(diffusers.utils.logging.CRITICAL)
    parts = models()
    return {name: ask(case, parts[case.base], folder) for name, case in CASES.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        rows = {NAME: run(Path(scratch))}
    RECORDED.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{NAME}, {len(CASES)} cases -> {RECORDED.name}\n")


if __name__ == "__main__":
    main()
