"""An image model in memory, a few denoising steps on it, and what an adapter changes in the picture.

Invariants
- Fixed seeds, fixed conditions, few steps, a small picture: two runs of one adapter render the same image.
- Runs in a process of its own per adapter; loading runs no code from the base's folder and asks no network.
- A family that is not known here is `unknown`, never a pass.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import diffusers
import torch

from registry.evaluation.thresholds import Thresholds
from registry.worker.model.image import Pipeline
from registry.worker.smoke.faults import first_line, machine_fault
from registry.worker.smoke.result import SmokeResult, ignore_progress
from registry.worker.smoke.weights import check_finite, tensors_of

STEPS = 3
SIDE = 16
"""Latent pixels of one side, where the model does not say less."""
WORDS = 8
SCALE = 8
"""Screen pixels of one latent pixel, in a picture without a decoder."""
SLOT = "adapter"
LOADERS = {
    "UNet2DConditionModel": "StableDiffusionLoraLoaderMixin",
    "FluxTransformer2DModel": "FluxLoraLoaderMixin",
}


def examine(
    base: Pipeline, folder: Path, thresholds: Thresholds, *, say: Callable[[str], None] = ignore_progress
) -> SmokeResult:
    """Finite, different, and the base as before; two small pictures."""
    result = SmokeResult(thresholds, say=say)
    files = [path for path in sorted(folder.iterdir()) if path.suffix == ".safetensors"]
    if len(files) != 1 or base.kind not in LOADERS:
        message = f"this worker cannot render with {base.kind or 'this base'} and {len(files)} weights files"
        result.note("unknown", "smoke.task_unsupported", "pipeline", message)
        return result
    if not check_finite(tensors_of(files[0]), result):
        return result
    fingerprint = base.fingerprint()
    say("rendering without the adapter")
    before = _render(base)
    started = perf_counter()
    try:
        _load(base, files[0])
    except Exception as e:  # other programs may know this format: their word is not ours to give
        if machine_fault(e):
            raise
        message = f"diffusers {diffusers.__version__} does not take this format: {first_line(e)}"
        result.note("unknown", "smoke.task_unsupported", files[0].name, message)
        return result
    try:
        result.measure("load_seconds", perf_counter() - started)
        say("rendering with the adapter")
        after = _render(base)
    except Exception as e:
        if machine_fault(e):
            raise
        result.note("error", "smoke.forward_failed", "pipeline", f"rendering with the adapter fails: {first_line(e)}")
        return result
    _compare(before, after, result)
    now = base.fingerprint()
    changed = [name for name, bits in fingerprint.items() if now[name] != bits]
    result.measurements["base_tensors_changed"] = len(changed)
    if changed:
        message = f"{len(changed)} of the base's tensors are changed by loading it"
        result.note("error", "smoke.base_changed", changed[0], message, "bit-equal", "changed")
    return result


def _load(base: Pipeline, file: Path) -> None:
    """The adapter's layers beside the base's, by diffusers' own reader of its format."""
    loader = getattr(diffusers.loaders, LOADERS[base.kind])
    answer = loader.lora_state_dict(str(file.parent), weight_name=file.name, return_alphas=True, local_files_only=True)
    state, alphas = answer if isinstance(answer, tuple) else (answer, None)
    if base.kind == "UNet2DConditionModel":
        loader.load_lora_into_unet(state, network_alphas=alphas, unet=base.denoiser, adapter_name=SLOT)
        if "text_encoder" in base.parts and any(name.startswith("text_encoder.") for name in state):
            loader.load_lora_into_text_encoder(
                state, network_alphas=alphas, text_encoder=base.parts["text_encoder"], adapter_name=SLOT
            )
    else:
        loader.load_lora_into_transformer(state, network_alphas=alphas, transformer=base.denoiser, adapter_name=SLOT)


def _compare(before: torch.Tensor, after: torch.Tensor, result: SmokeResult) -> None:
    if not bool(torch.isfinite(after).all()):
        message = "the picture with the adapter holds NaN or infinite values"
        result.note("error", "smoke.picture_not_finite", "picture", message, "finite values", "NaN or infinity")
        return
    low, high = float(before.min()), float(before.max())
    shown = [((picture - low) / max(high - low, 1e-12)).clamp(0, 1) for picture in (before, after)]
    delta = float((after - before).abs().mean()) / max(high - low, 1e-12)
    result.measure("mean_pixel_delta", delta)
    result.measurements["steps"] = STEPS
    result.images = {
        name: base64.b64encode(_png(picture)).decode() for name, picture in zip(("before", "after"), shown, strict=True)
    }
    if delta <= result.thresholds.image_delta:
        message = "with the adapter the same picture comes out as without it"
        limit = f"a mean change of more than {result.thresholds.image_delta:g}"
        result.note("error", "smoke.picture_unchanged", "picture", message, limit, f"{delta:.3g}")


@torch.inference_mode()
def _render(base: Pipeline) -> torch.Tensor:
    """A picture [3, height, width] after `STEPS` steps from seeded noise."""
    seeded = torch.Generator().manual_seed(7)
    latents = (_with_unet if base.kind == "UNet2DConditionModel" else _with_flux)(base, seeded)
    decoder = base.parts.get("vae")
    if decoder is not None:
        return decoder.decode(latents / decoder.config.scaling_factor).sample[0].float().cpu()
    return latents[0, :3].float().cpu().repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2)


def _with_unet(base: Pipeline, seeded: torch.Generator) -> torch.Tensor:
    unet, encoder = base.denoiser, base.parts.get("text_encoder")
    config = unet.config
    side = min(int(config.sample_size or SIDE), SIDE)
    latents = base.here(torch.randn(1, config.in_channels, side, side, generator=seeded))
    context = base.here(torch.randn(1, WORDS, config.cross_attention_dim, generator=seeded))
    if encoder is not None and encoder.config.hidden_size == config.cross_attention_dim:
        words = torch.arange(1, WORDS + 1, device=context.device)[None] % encoder.config.vocab_size
        context = encoder(words).last_hidden_state
    extra: dict[str, Any] = {}
    if config.addition_embed_type == "text_time":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        extra = {
            "text_embeds": base.here(torch.randn(1, width, generator=seeded)),
            "time_ids": base.here(torch.zeros(1, 6)),
        }
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(STEPS)
    for moment in scheduler.timesteps:
        noise = unet(latents, moment, encoder_hidden_states=context, added_cond_kwargs=extra or None).sample
        latents = scheduler.step(noise[:, : latents.shape[1]], moment, latents).prev_sample
    return latents


def _with_flux(base: Pipeline, seeded: torch.Generator) -> torch.Tensor:
    transformer, side = base.denoiser, SIDE // 2
    config = transformer.config
    latents = base.here(torch.randn(1, side * side, config.in_channels, generator=seeded))
    conditions = {
        "encoder_hidden_states": base.here(torch.randn(1, WORDS, config.joint_attention_dim, generator=seeded)),
        "pooled_projections": base.here(torch.randn(1, config.pooled_projection_dim, generator=seeded)),
        "txt_ids": base.here(torch.zeros(WORDS, 3)),
        "img_ids": base.here(torch.tensor([[0.0, i // side, i % side] for i in range(side * side)])),
        "guidance": base.here(torch.ones(1)) if config.guidance_embeds else None,
    }
    for step in range(STEPS):
        moment = base.here(torch.tensor([1.0 - step / STEPS]))
        latents = latents - transformer(hidden_states=latents, timestep=moment, **conditions).sample / STEPS
    return latents.transpose(1, 2).reshape(1, config.in_channels, side, side)


def _png(picture: torch.Tensor) -> bytes:
    """An 8-bit RGB picture as PNG. Values from 0 to 1, [3, height, width]."""
    pixels = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + bytes(row.flatten().tolist()) for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
