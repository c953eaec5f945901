"""What the worker says that diffusers took of an image adapter's file, against the layers that diffusers made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from registry.evaluation.verdicts import Outcome, add_up
from tests import fixtures
from tests.worker.image_cases import CASES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not fixtures.IMAGES_AVAILABLE, reason="the images extra (diffusers) is not installed"),
]
NOT_LOADED, NO_VALUES = "smoke.tensors_not_loaded", "smoke.layer_without_values"
REFUSED, STRENGTH = "smoke.load_failed", "smoke.wrong_strength"
EXPECTED: dict[str, tuple[str, ...]] = {
    "sd-diffusers": (),
    "sd-diffusers-alpha": (),
    "sd-diffusers-bf16": (),
    "sd-old": (),
    "sd-late-2023": (),
    "sd-kohya-text": (),
    "sd-kohya-alphas": (STRENGTH,),
    "sd-kohya-dora": (NOT_LOADED,),
    "sd-diffusers-dora": (),
    "sd-diffusers-dora-in-part": (NO_VALUES,),
    "sd-loha": (REFUSED,),
    "sd-half-a-pair": (NO_VALUES,),
    "sd-nan": ("smoke.not_finite",),
    "sd-wrong-width": (REFUSED,),
    "sd-flux-names": (NOT_LOADED, "smoke.tensors_uncompared"),
    "flux-kohya": (),
    "flux-xlabs": (),
    "flux-bfl": (NOT_LOADED,),
    "flux-comfy": (NOT_LOADED,),
    "flux-onetrainer-mlp": (REFUSED,),
    "qwen-diffusers": (),
    "qwen-adapter-name": (REFUSED,),
    "qwen-no-prefix": (NOT_LOADED,),
}
"""Case → the codes of what is wrong; nothing: diffusers takes all of it as it is meant."""
ABSENT = dict.fromkeys(("vae", "tokenizer", "scheduler"))
PIPELINES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd-tiny": (
        "StableDiffusionPipeline",
        {**ABSENT, "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    ),
    "flux-tiny": ("FluxPipeline", {**ABSENT, **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer_2"))}),
    "qwen-image-tiny": ("QwenImagePipeline", {**ABSENT, "text_encoder": None}),
}


def models(base: str) -> dict[str, Any]:
    import diffusers
    import transformers

    folder = fixtures.image_bases() / base
    if base == "sd-tiny":
        unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
        return {"unet": unet, "text_encoder": transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")}
    kind = diffusers.FluxTransformer2DModel if base == "flux-tiny" else diffusers.QwenImageTransformer2DModel
    return {"transformer": kind.from_pretrained(folder / "transformer")}


@pytest.fixture(scope="module")
def parts() -> dict[str, dict[str, Any]]:
    return {base: models(base) for base in PIPELINES}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_worker_says_what_the_layers_show(name: str, parts: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    import diffusers

    from tests.worker import diffusers_oracle  # imports torch

    case = CASES[name]
    kind, options = PIPELINES[case.base]
    if case.base == "sd-tiny":
        options = {**options, "scheduler": diffusers.DDIMScheduler()}
    findings = diffusers_oracle.worker_says(case, parts[case.base], kind, tmp_path)
    assert tuple(sorted(f.code for f in findings if f.severity != "info")) == EXPECTED[name]
    answer = diffusers_oracle.ask(case, parts[case.base], (kind, options), tmp_path)
    assert (add_up(findings) is Outcome.PASS) == (answer == "exact"), answer


def test_a_verdict_counts_the_tensors_that_were_taken(parts: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    from tests.worker import diffusers_oracle

    findings = diffusers_oracle.worker_says(
        CASES["sd-kohya-text"], parts["sd-tiny"], "StableDiffusionPipeline", tmp_path
    )
    (finding,) = findings
    assert (finding.code, finding.expected, finding.actual) == ("smoke.tensors_loaded", "24", "24")
