"""Test an adapter of an image model: what diffusers takes of its file, and what it changes in an image.

The file is loaded with `load_lora_weights` of the whole pipeline, as users load it. Its tensors are then compared with
the layers in the models. That is the verdict `engine` of this diffusers, and a part of the smoke test.

Fixed seeds, fixed conditions, few steps, small images: two runs of one adapter render the same images. A model that
this worker cannot render is `unknown`, never a pass.
"""

import base64
import io
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image
from safetensors import safe_open

from registry.adapters.read import NonPeftContents
from registry.client.local.adapter_folder import read_contents
from registry.evaluation.thresholds import Thresholds
from registry.findings import Finding
from registry.worker.model import image_updates
from registry.worker.model.image import DECODER, Pipeline
from registry.worker.model.image_updates import Arrival, Magnitudes
from registry.worker.sandbox.program import Progress, ignore_progress
from registry.worker.smoke.checks import SmokeTest
from registry.worker.smoke.result import SmokeResult, exceptions_as, library_message, machine_fault
from registry.worker.smoke.tensors import check_finite, tensors_of

STEPS = 3
SIDE = 16
"""Latent pixels of one side, or the model's `sample_size` if that is less."""
WORDS = 8
SCALE = 8
"""Pixels for one latent pixel in an image without a decoder."""
SLOT = "adapter"
DIFFUSERS = f"diffusers {diffusers.__version__}"


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
        if len(self._files) == 1 and self._base.pipeline_class is not None:
            return True
        message = f"{DIFFUSERS} cannot load {len(self._files)} weights files into {self._base.name}"
        self.result.note("unknown", "smoke.task_unsupported", "pipeline", message)
        return False

    def check_weights(self) -> bool:
        """Whether all numbers are finite."""
        return check_finite(tensors_of(self._files[0]), self.result)

    def check_baseline(self) -> bool:
        """Render without the adapter."""
        self._fingerprint = self._base.fingerprint()
        if self._base.kind not in DENOISERS:
            return True
        self.result.say("rendering without the adapter")
        self._before = _render(self._base)
        return True

    def check_load(self) -> bool:
        """Load the adapter, and say what diffusers took of it."""
        file, started = self._files[0], time.perf_counter()
        try:
            self._base.assembled().load_lora_weights(
                str(file.parent), weight_name=file.name, adapter_name=SLOT, local_files_only=True, use_safetensors=True
            )
        except Exception as e:
            if machine_fault(e):
                raise
            message = f"{DIFFUSERS} refuses the file: {library_message(e)}"
            self.result.engine = [Finding.of("error", "smoke.load_failed", file.name, message)]
            self.result.note("unknown", "smoke.task_unsupported", file.name, message)  # other programs may take it
            return False
        self.result.measure("load_seconds", time.perf_counter() - started)
        self._note_what_was_taken()
        return True

    def _note_what_was_taken(self) -> None:
        """Compare the file with the layers that are in the models now."""
        contents = read_contents(self._files[0].parent)
        if not isinstance(contents, NonPeftContents):
            return
        paths = {name.rpartition(".")[0] for name in self._base.originals}
        parts = {name: part for name, part in self._base.parts.items() if name != DECODER}
        with safe_open(self._files[0], framework="pt") as file:
            updates = image_updates.loaded(parts, SLOT)
            arrival = image_updates.compare(contents.file, file.get_tensor, updates, paths)
            magnitudes = image_updates.compare_magnitudes(
                contents.file, file.keys(), file.get_tensor, image_updates.magnitudes(parts, SLOT), paths
            )
        findings = list(_what_was_taken(self._files[0].name, arrival, magnitudes, is_empty=not updates))
        self.result.findings += findings
        self.result.engine = [*findings, *_what_was_not_seen(self._files[0].name, arrival, magnitudes)]

    def check_forward(self) -> bool:
        """Render with the adapter and compare."""
        if self._base.kind not in DENOISERS:
            message = f"this worker cannot render with {self._base.kind}"
            self.result.note("unknown", "smoke.task_unsupported", "pipeline", message)
            return False
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


def _what_was_taken(file: str, arrival: Arrival, magnitudes: Magnitudes, *, is_empty: bool) -> Iterator[Finding]:
    """What is wrong with the layers that diffusers has made. `is_empty`: it has made none."""
    absent = sorted({*arrival.absent, *magnitudes.dropped})
    total = arrival.tensors + magnitudes.stated
    if is_empty:
        message = f"{DIFFUSERS} takes nothing of the file and raises no error"
        yield Finding.of("error", "smoke.tensors_not_loaded", file, message)
    elif absent:
        message = f"{DIFFUSERS} ignores {len(absent)} of {total} tensors, the first of them {absent[0]}"
        expected, actual = f"{total} tensors", f"{total - len(absent)}"
        yield Finding.of("error", "smoke.tensors_not_loaded", absent[0], message, expected, actual)
    if arrival.uncompared:
        message = (
            f"{DIFFUSERS} takes {len(arrival.uncompared)} updates that are no plain pairs, {arrival.uncompared[0]} "
            "first, and this registry cannot compare them with the layers"
        )
        yield Finding.of("unknown", "smoke.tensors_uncompared", arrival.uncompared[0], message)
    if arrival.empty:
        message = (
            f"{DIFFUSERS} makes {len(arrival.empty)} layers without values from the file, {arrival.empty[0]} first"
        )
        yield Finding.of("error", "smoke.layer_without_values", arrival.empty[0], message)
    if magnitudes.invented:
        layers, path = magnitudes.invented, magnitudes.invented[0]
        message = f"{DIFFUSERS} applies DoRA in {len(layers)} modules, {path} first, without magnitudes in the file"
        yield Finding.of("error", "lora.magnitude_absent", path, message, "lora_magnitude_vector", "nothing")
    if magnitudes.orphans:
        orphans, name = magnitudes.orphans, magnitudes.orphans[0]
        message = f"{len(orphans)} magnitudes of DoRA have lost their A and B, the first of them {name}"
        yield Finding.of("error", "lora.pair_incomplete", name, message, "A, B and the magnitude", "the magnitude")
    if arrival.wrong:
        wrong = arrival.wrong[0]
        path, scale, loaded_scale = wrong.module.path, wrong.stated, wrong.loaded
        message = (
            f"{DIFFUSERS} applies {len(arrival.wrong)} of {arrival.pairs} modules at another strength than the file "
            f"states, the first of them {path}: B·A times {loaded_scale:.4g} instead of {scale:.4g}"
        )
        values = (f"{scale:.4g}", f"{loaded_scale:.4g}")
        yield Finding.of("error", "smoke.wrong_strength", path, message, *values)


def _what_was_not_seen(file: str, arrival: Arrival, magnitudes: Magnitudes) -> Iterator[Finding]:
    """How much was compared, and what this worker could not compare: of the verdict `engine`, not of the test."""
    total = arrival.tensors + magnitudes.stated
    loaded = total - len({*arrival.absent, *magnitudes.dropped})
    message = f"{DIFFUSERS} takes {loaded} of {total} tensors"
    yield Finding.of("info", "smoke.tensors_loaded", file, message, str(total), str(loaded))
    if arrival.unseen:
        message = f"the worker's base has no model for {len(arrival.unseen)} updates, {arrival.unseen[0]} first"
        yield Finding.of("unknown", "smoke.tensors_uncompared", arrival.unseen[0], message)


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
    latents = DENOISERS[base.kind](base, seeded)
    decoder = base.parts.get("vae")
    if decoder is not None and base.kind not in _OF_VIDEO:
        return decoder.decode(latents / decoder.config.scaling_factor).sample[0].float().cpu()
    return latents[0, :3].float().cpu().repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2)


def _with_unet(base: Pipeline, seeded: torch.Generator) -> torch.Tensor:
    unet, encoders = base.denoiser, [base.parts[name] for name in base.text_encoders]
    config = unet.config
    side = min(int(config.sample_size or SIDE), SIDE)
    latents = base.to_device(torch.randn(1, config.in_channels, side, side, generator=seeded))
    context = base.to_device(torch.randn(1, WORDS, config.cross_attention_dim, generator=seeded))
    if encoders and sum(encoder.config.hidden_size for encoder in encoders) == config.cross_attention_dim:
        words = torch.arange(1, WORDS + 1, device=context.device)[None]
        states = [encoder(words % encoder.config.vocab_size).last_hidden_state for encoder in encoders]
        context = torch.cat(states, dim=-1)
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


def _with_sd3(base: Pipeline, seeded: torch.Generator) -> torch.Tensor:
    config, (latents, words) = base.denoiser.config, _noise(base, seeded, base.denoiser.config.joint_attention_dim)
    pooled = base.to_device(torch.randn(1, config.pooled_projection_dim, generator=seeded))
    return _flow(base, latents, lambda noisy, moment: base.denoiser(
        hidden_states=noisy, timestep=moment, encoder_hidden_states=words, pooled_projections=pooled,
    ).sample)  # fmt: skip


def _with_wan(base: Pipeline, seeded: torch.Generator) -> torch.Tensor:
    latents, words = _noise(base, seeded, base.denoiser.config.text_dim)
    return _flow(base, latents, lambda noisy, moment: base.denoiser(
        hidden_states=noisy.unsqueeze(2), timestep=moment, encoder_hidden_states=words).sample.squeeze(2))  # fmt: skip


def _with_ltx(base: Pipeline, seeded: torch.Generator) -> torch.Tensor:
    latents, words = _noise(base, seeded, base.denoiser.config.caption_channels)
    side, mask = latents.shape[-1], torch.ones(1, WORDS, device=words.device)
    return _flow(base, latents, lambda noisy, moment: base.denoiser(
        hidden_states=noisy.flatten(2).transpose(1, 2), timestep=moment, encoder_hidden_states=words,
        encoder_attention_mask=mask, num_frames=1, height=side, width=side,
    ).sample.transpose(1, 2).reshape(noisy.shape))  # fmt: skip


def _with_z_image(base: Pipeline, seeded: torch.Generator) -> torch.Tensor:
    latents, words = _noise(base, seeded, base.denoiser.config.cap_feat_dim)
    return _flow(base, latents, lambda noisy, moment: base.denoiser(
        [noisy[0].unsqueeze(1)], moment, [words[0]]).sample[0].squeeze(1).unsqueeze(0))  # fmt: skip


def _noise(base: Pipeline, seeded: torch.Generator, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [1, channels, side, side] of one frame, and states of a text [1, words, width]."""
    side = SIDE // 2
    latents = torch.randn(1, base.denoiser.config.in_channels, side, side, generator=seeded)
    return base.to_device(latents), base.to_device(torch.randn(1, WORDS, width, generator=seeded))


def _flow(
    base: Pipeline, latents: torch.Tensor, velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Follow the denoiser's velocity in `STEPS` steps from noise to an image."""
    for step in range(STEPS):
        latents = latents - velocity(latents, base.to_device(torch.tensor([1.0 - step / STEPS]))) / STEPS
    return latents


DENOISERS: Mapping[str, Callable[[Pipeline, torch.Generator], torch.Tensor]] = {
    "UNet2DConditionModel": _with_unet, "FluxTransformer2DModel": _with_flux, "SD3Transformer2DModel": _with_sd3,
    "WanTransformer3DModel": _with_wan, "LTXVideoTransformer3DModel": _with_ltx,
    "ZImageTransformer2DModel": _with_z_image,
}  # fmt: skip
"""Class of a denoiser → what renders latents with it."""
_OF_VIDEO = ("WanTransformer3DModel", "LTXVideoTransformer3DModel")
"""Their latents are shown as they are: decoders of videos take several frames."""


def _png(values: torch.Tensor) -> bytes:
    """Encode an RGB image [3, height, width] of values from 0 to 1 as PNG."""
    pixels = (values * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG", optimize=True)
    return file.getvalue()
