"""The worker and diffusers about generated image adapters: does each pair arrive in its module, and nothing else?

    python -m tests.proof.diffusers_grid [--share N] [IDS…]     prints where the worker and the layers disagree

IDS are beginnings or patterns of ids (tests/proof/image_grid.py); without them one case in N, 8 by default. The cases
that the tests have by name (tests/worker/image_cases.py) are asked too.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import torch
import transformers

from registry.evaluation.verdicts import Outcome, add_up
from tests.proof import image_grid
from tests.worker import diffusers_oracle
from tests.worker.image_cases import CASES, Case
from tests.worker.test_diffusers import PIPELINES
from tests.worker.test_diffusers import models as named_models

SECONDS = 6
"""Of CPU: more than any load here needs. What runs on is diffusers' endless loop over a negative alpha."""
Models = dict[str, Any]


def _clip(kind: Any) -> Any:
    return kind(transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=100,
        max_position_embeddings=16, projection_dim=32))  # fmt: skip


def _unet(**options: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
        cross_attention_dim=32, **options)  # fmt: skip


def models() -> dict[str, Models]:
    """Family → component → tiny random model."""
    torch.manual_seed(7)
    cross_down, cross_up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    later_down, later_up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    with_projection = transformers.CLIPTextModelWithProjection
    return {
        "sd": {"unet": _unet(down_block_types=cross_down, up_block_types=cross_up),
               "text_encoder": _clip(transformers.CLIPTextModel)},
        "sdxl": {"unet": _unet(down_block_types=later_down, up_block_types=later_up, use_linear_projection=True,
                               addition_embed_type="text_time", addition_time_embed_dim=8,
                               transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=80),
                 "text_encoder": _clip(transformers.CLIPTextModel), "text_encoder_2": _clip(with_projection)},
        "sd3": {"transformer": diffusers.SD3Transformer2DModel(
                    sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8,
                    num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32,
                    pooled_projection_dim=64, out_channels=4),
                "text_encoder": _clip(with_projection), "text_encoder_2": _clip(with_projection)},
        "flux": {"transformer": diffusers.FluxTransformer2DModel(
                     patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16,
                     num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
                     axes_dims_rope=(4, 4, 8), guidance_embeds=True),
                 "text_encoder": _clip(transformers.CLIPTextModel)},
        "auraflow": {"transformer": diffusers.AuraFlowTransformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
            attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32,
            out_channels=4, pos_embed_max_size=64)},
        "wan": {"transformer": diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=32, freq_dim=16, ffn_dim=48, num_layers=2, cross_attn_norm=True, rope_max_seq_len=32)},
        "qwen": {"transformer": diffusers.QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 4, 4))},
        "pixart": {"transformer": diffusers.PixArtTransformer2DModel(
            sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=4,
            caption_channels=32, in_channels=4, cross_attention_dim=32, out_channels=8, num_embeds_ada_norm=1000)},
        **_models_of_video_and_later_images(),
    }  # fmt: skip


def _models_of_video_and_later_images() -> dict[str, Models]:
    return {
        "hunyuan-video": {"transformer": diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
            num_single_layers=1, num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True,
            text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4))},
        "hidream": {"transformer": diffusers.HiDreamImageTransformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=2, caption_channels=[16, 16], text_emb_dim=16, num_routed_experts=2,
            num_activated_experts=1, axes_dims_rope=(4, 2, 2), max_resolution=(8, 8), llama_layers=[0, 1])},
        "ltx": {"transformer": diffusers.LTXVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
            num_layers=2, caption_channels=32)},
        "lumina2": {"transformer": diffusers.Lumina2Transformer2DModel(
            sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1,
            num_attention_heads=3, num_kv_heads=1, multiple_of=2, axes_dim_rope=(4, 2, 2),
            axes_lens=(128, 128, 128), cap_feat_dim=32)},
        "z-image": {"transformer": diffusers.ZImageTransformer2DModel(
            all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=2, n_refiner_layers=1,
            n_heads=2, n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[64, 32, 32])},
        "cogvideox": {"transformer": diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2,
            text_embed_dim=32, num_layers=2, sample_width=8, sample_height=8, sample_frames=9, patch_size=2,
            max_text_seq_length=16)},
        "cogview4": {"transformer": diffusers.CogView4Transformer2DModel(
            patch_size=2, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=4, out_channels=4,
            text_embed_dim=32, time_embed_dim=8, condition_dim=4)},
        "sana": {"transformer": diffusers.SanaTransformer2DModel(
            patch_size=1, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=16,
            num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=32,
            sample_size=8)},
        "mochi": {"transformer": diffusers.MochiTransformer3DModel(
            patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
            in_channels=12, text_embed_dim=32, time_embed_dim=4, max_sequence_length=16)},
    }  # fmt: skip


_ABSENT = ("vae", "tokenizer", "scheduler")
_PIPELINES: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "sd": ("StableDiffusionPipeline", ("safety_checker", "feature_extractor"), {"requires_safety_checker": False}),
    "sdxl": ("StableDiffusionXLPipeline", ("tokenizer_2",), {"add_watermarker": False}),
    "sd3": ("StableDiffusion3Pipeline", ("tokenizer_2", "tokenizer_3", "text_encoder_3"), {}),
    "flux": ("FluxPipeline", ("tokenizer_2", "text_encoder_2"), {}),
    "auraflow": ("AuraFlowPipeline", ("text_encoder",), {}),
    "wan": ("WanPipeline", ("text_encoder",), {}), "qwen": ("QwenImagePipeline", ("text_encoder",), {}),
    "pixart": ("PixArtAlphaPipeline", ("text_encoder",), {}), "ltx": ("LTXPipeline", ("text_encoder",), {}),
    "hunyuan-video": ("HunyuanVideoPipeline", ("text_encoder", "text_encoder_2", "tokenizer_2"), {}),
    "hidream": ("HiDreamImagePipeline", ("text_encoder", *(f"{part}_{n}" for part in ("text_encoder", "tokenizer")
                                         for n in (2, 3, 4))), {}),
    "lumina2": ("Lumina2Pipeline", ("text_encoder",), {}), "z-image": ("ZImagePipeline", ("text_encoder",), {}),
    "cogvideox": ("CogVideoXPipeline", ("text_encoder",), {}), "sana": ("SanaPipeline", ("text_encoder",), {}),
    "cogview4": ("CogView4Pipeline", ("text_encoder",), {}), "mochi": ("MochiPipeline", ("text_encoder",), {}),
}  # fmt: skip


def options(family: str) -> dict[str, Any]:
    """What the pipeline's constructor gets beside the models."""
    _, absent, others = _PIPELINES[family]
    return {**dict.fromkeys((*_ABSENT, *absent)), **others} | (
        {"scheduler": diffusers.DDIMScheduler()} if family == "sd" else {}
    )


def shapes_of(parts: dict[str, Models]) -> dict[str, dict[str, dict[str, list[int]]]]:
    """Family → component → path → shape of its weight, of all weights with two dimensions or more."""
    return {
        family: {
            component: {
                name.removesuffix(".weight"): list(value.shape)
                for name, value in model.state_dict().items()
                if name.endswith(".weight") and value.ndim > 1
            }
            for component, model in components.items()
        }
        for family, components in parts.items()
    }


class Endless(Exception):
    """diffusers did not come back."""


def _endless(*_: Any) -> None:
    raise Endless


def cases(identities: Sequence[str], share: int) -> Iterator[tuple[str, Case, Models, str, dict[str, Any]]]:
    """Id, file, models, class of the pipeline and what else it gets."""
    parts = {base: named_models(base) for base in PIPELINES}
    for name, case in CASES.items():
        kind, others = PIPELINES[case.base]
        scheduler = {"scheduler": diffusers.DDIMScheduler()} if case.base == "sd-tiny" else {}
        yield name, case, parts[case.base], kind, others | scheduler
    generated = models()
    shapes = shapes_of(generated)
    every = image_grid.ids(shapes)
    chosen = [i for i in every if any(i.startswith(p) or fnmatch.fnmatch(i, p) for p in identities)]
    for identity in chosen if identities else image_grid.sample(every, share):
        case = image_grid.build(identity, shapes)
        yield identity, case, generated[case.base], _PIPELINES[case.base][0], options(case.base)


def disagreements(identities: Sequence[str] = (), share: int = 8) -> tuple[int, dict[str, str]]:
    """How many were asked, and id → where the worker says something else than the layers show."""
    signal.signal(signal.SIGPROF, _endless)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity(50)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    count, different = 0, {}
    with tempfile.TemporaryDirectory() as scratch:
        for identity, case, parts, kind, others in cases(identities, share):
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                answer = diffusers_oracle.ask(case, parts, (kind, others), Path(scratch))
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                findings = diffusers_oracle.worker_says(case, parts, kind, Path(scratch))
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            count += 1
            outcome = add_up(findings)
            codes = sorted({f.code for f in findings if f.severity != "info"})
            if (outcome is Outcome.PASS and answer != "exact") or (outcome is Outcome.FAIL and answer == "exact"):
                different[identity] = f"{answer}: the worker says {outcome} {codes}"
    return count, different


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if diffusers and the worker disagree anywhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*")
    parser.add_argument("--share", type=int, default=8)
    chosen = parser.parse_args(arguments)
    count, different = disagreements(chosen.ids, chosen.share)
    for identity, text in different.items():
        print(f"{identity:60} {text}")
    print(f"diffusers=={diffusers.__version__}: {count} cases, {len(different)} differences")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
