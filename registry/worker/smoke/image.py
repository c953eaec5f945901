"""Test an adapter of an image model: a few denoising steps, and the difference of the images.

Fixed seeds, fixed conditions, few steps, small images: two runs of one adapter render the same images. An unknown
family is `unknown`, never a pass.
"""

import base64
import io
from pathlib import Path
from time import perf_counter
from typing import Any

import diffusers
import torch
from PIL import Image

from registry.evaluation.thresholds import Thresholds
from registry.worker.model.image import Pipeline
from registry.worker.sandbox.program import Progress, ignore_progress
from registry.worker.smoke.checks import SmokeTest
from registry.worker.smoke.result import SmokeResult, exceptions_as
from registry.worker.smoke.tensors import check_finite, tensors_of

STEPS = 3
SIDE = 16
"""Latent pixels of one side, or the model's `sample_size` if that is less."""
WORDS = 8
SCALE = 8
"""Pixels for one latent pixel in an image without a decoder."""
SLOT = "adapter"
LOADERS = {"UNet2DConditionModel": "StableDiffusionLoraLoaderMixin", "FluxTransformer2DModel": "FluxLoraLoaderMixin"}


class ImageTest(SmokeTest):
    """Test one adapter on a pipeline in a process that ends afterwards."""

    def __init__(
        self, base: Pipeline, folder: Path, thresholds: Thresholds, *, say: Progress = ignore_progress
    ) -> None:
        super().__init__(SmokeResult(thresholds, say=say))
        self._base = base
        self._files = [path for path in sorted(folder.iterdir()) if path.suffix == ".safetensors"]
        self._fingerprint: dict[str, int] = {}
        self._before = torch.empty(0)

    def check_task(self) -> bool:
        """Whether diffusers has a loader for one file and this base."""
        if len(self._files) == 1 and self._base.kind in LOADERS:
            return True
        kind = self._base.kind or "this base"
        message = f"this worker cannot render with {kind} and {len(self._files)} weights files"
        self.result.note("unknown", "smoke.task_unsupported", "pipeline", message)
        return False

    def check_weights(self) -> bool:
        """Whether all numbers are finite."""
        return check_finite(tensors_of(self._files[0]), self.result)

    def check_baseline(self) -> bool:
        """Render without the adapter."""
        self._fingerprint = self._base.fingerprint()
        self.result.say("rendering without the adapter")
        self._before = _render(self._base)
        return True

    def check_load(self) -> bool:
        """Load the adapter."""
        started = perf_counter()
        message = f"diffusers {diffusers.__version__} does not take this format"  # other programs may know it
        with exceptions_as("unknown", "smoke.task_unsupported", self._files[0].name, message):
            _load(self._base, self._files[0])
        self.result.measure("load_seconds", perf_counter() - started)
        return True

    def check_forward(self) -> bool:
        """Render with the adapter and compare."""
        self.result.say("rendering with the adapter")
        with exceptions_as("error", "smoke.forward_failed", "pipeline", "rendering with the adapter fails"):
            after = _render(self._base)
        _compare(self._before, after, self.result)
        return True

    def check_base(self) -> bool:
        """Note tensors of the base that loading the adapter changed."""
        now = self._base.fingerprint()
        changed = [name for name, bits in self._fingerprint.items() if now[name] != bits]
        self.result.measurements["base_tensors_changed"] = len(changed)
        if changed:
            message = f"loading the adapter changes {len(changed)} of the base's tensors"
            self.result.note("error", "smoke.base_changed", changed[0], message, "bit-equal", "changed")
        return True


def _load(base: Pipeline, file: Path) -> None:
    """Load the adapter's layers beside the base's, by diffusers' own reader of its format."""
    loader = getattr(diffusers.loaders, LOADERS[base.kind])
    # kohya's files for SDXL name the blocks of the original model, whose numbers follow from the configuration.
    blocks = {"unet_config": base.denoiser.config} if base.kind == "UNet2DConditionModel" else {}
    loaded = loader.lora_state_dict(
        str(file.parent), weight_name=file.name, return_alphas=True, local_files_only=True, **blocks
    )
    state, alphas = loaded if isinstance(loaded, tuple) else (loaded, None)
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
        message = "the image with the adapter holds NaN or infinite values"
        result.note("error", "smoke.image_not_finite", "image", message, "finite values", "NaN or infinity")
        return
    low, high = float(before.min()), float(before.max())
    extent = max(high - low, 1e-12)
    delta = float((after - before).abs().mean()) / extent
    result.measure("mean_pixel_delta", delta)
    result.measurements["steps"] = STEPS
    for name, image in (("before", before), ("after", after)):
        result.images[name] = base64.b64encode(_png(((image - low) / extent).clamp(0, 1))).decode()
    if delta <= result.thresholds.image_delta:
        message = "the image is the same with the adapter as without it"
        limit = f"a mean change of more than {result.thresholds.image_delta:g}"
        result.note("error", "smoke.image_unchanged", "image", message, limit, f"{delta:.3g}")


@torch.inference_mode()
def _render(base: Pipeline) -> torch.Tensor:
    """Render an image [3, height, width] after `STEPS` steps from seeded noise."""
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
    latents = base.to_device(torch.randn(1, config.in_channels, side, side, generator=seeded))
    context = base.to_device(torch.randn(1, WORDS, config.cross_attention_dim, generator=seeded))
    if encoder is not None and encoder.config.hidden_size == config.cross_attention_dim:
        words = torch.arange(1, WORDS + 1, device=context.device)[None] % encoder.config.vocab_size
        context = encoder(words).last_hidden_state
    extra: dict[str, Any] = {}
    if config.addition_embed_type == "text_time":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        extra = {
            "text_embeds": base.to_device(torch.randn(1, width, generator=seeded)),
            "time_ids": base.to_device(torch.zeros(1, 6)),
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
    latents = base.to_device(torch.randn(1, side * side, config.in_channels, generator=seeded))
    conditions = {
        "encoder_hidden_states": base.to_device(torch.randn(1, WORDS, config.joint_attention_dim, generator=seeded)),
        "pooled_projections": base.to_device(torch.randn(1, config.pooled_projection_dim, generator=seeded)),
        "txt_ids": base.to_device(torch.zeros(WORDS, 3)),
        "img_ids": base.to_device(torch.tensor([[0.0, i // side, i % side] for i in range(side * side)])),
        "guidance": base.to_device(torch.ones(1)) if config.guidance_embeds else None,
    }
    for step in range(STEPS):
        moment = base.to_device(torch.tensor([1.0 - step / STEPS]))
        latents = latents - transformer(hidden_states=latents, timestep=moment, **conditions).sample / STEPS
    return latents.transpose(1, 2).reshape(1, config.in_channels, side, side)


def _png(values: torch.Tensor) -> bytes:
    """Encode an RGB image [3, height, width] of values from 0 to 1 as PNG."""
    pixels = (values * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG", optimize=True)
    return file.getvalue()
