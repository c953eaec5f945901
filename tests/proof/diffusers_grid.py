"""diffusers itself about every generated image adapter: does each pair arrive in its module, and nothing else?

    python -m tests.proof.diffusers_grid [IDS…]     asks what the journal lacks, prints where the registry disagrees
    python -m tests.proof.diffusers_grid --record   and writes a third into tests/engines/recorded_diffusers_grid.json

An answer is `exact`, `wrong N/M` (N of M modules lack their update, or have another one or one too many), or the
class of the exception. IDS are beginnings or patterns of ids (tests/engines/image_grid.py).

Invariants
- The entry point is `load_lora_weights` of a whole pipeline, as a user calls it; each case has fresh models.
- An update counts by the layer's own numbers: scale · B · A, its magnitudes and biases, on unchanged weights.
- Answers are kept in `.cache/diffusers-grid.jsonl` by the case's bytes: a stopped run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import hashlib
import json
import os
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import torch
import transformers
from safetensors.torch import load_file

from tests.engines import image_grid
from tests.engines.image_cases import Case, Update
from tests.engines.image_writers import UNETS

NAME = f"diffusers=={diffusers.__version__}"
JOURNAL = Path(".cache/diffusers-grid.jsonl")
WEIGHT_NAME = "adapter.safetensors"
SECONDS = 3
"""Of CPU: more than any load here needs. What runs on is diffusers' endless loop over a negative alpha."""
TOLERANCE = 1e-4
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


def pipeline(family: str, parts: Models) -> Any:
    """A whole pipeline of these models, with nothing in the places of the others."""
    name, absent, options = _PIPELINES[family]
    rest = dict.fromkeys((*_ABSENT, *absent))
    if family == "sd":
        rest["scheduler"] = diffusers.DDIMScheduler()
    return getattr(diffusers, name)(**rest, **parts, **options)


def described(parts: dict[str, Models]) -> dict[str, Any]:
    """What `image_grid` needs of the models: class and shapes of all weights with two dimensions or more."""
    bases = {}
    for family, components in parts.items():
        config = dict(components[("unet" if family in UNETS else "transformer")].config)
        shapes = {
            component: {name.removesuffix(".weight"): list(value.shape) for name, value in model.state_dict().items()
                        if name.endswith(".weight") and value.ndim > 1}
            for component, model in components.items()
        }  # fmt: skip
        denoiser = components[("unet" if family in UNETS else "transformer")]
        facts = {"_class_name": type(denoiser).__name__, "cross_attention_dim": config.get("cross_attention_dim")}
        bases[family] = {"pipeline": _PIPELINES[family][0], "config": facts, "components": shapes}
    return bases


def ask(case: Case, parts: Models, folder: Path) -> str:
    """diffusers' answer about one file."""
    (folder / WEIGHT_NAME).write_bytes(case.file)
    loaded = copy.deepcopy(parts)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        pipeline(case.base, loaded).load_lora_weights(str(folder), weight_name=WEIGHT_NAME)
    except Exception as e:  # whatever diffusers raises is its answer
        return type(e).__name__
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
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
    product = update.scale * tensors[update.b][first:last].flatten(1) @ tensors[update.a].flatten(1)
    own = module.scaling[name] * b.flatten(1) @ a.flatten(1)
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


class Endless(Exception):
    """diffusers did not come back."""


def _endless(*_: Any) -> None:
    raise Endless


def _journal() -> dict[str, str]:
    rows = [json.loads(line) for line in JOURNAL.read_text().splitlines()] if JOURNAL.exists() else []
    return {row["case"]: row["answer"] for row in rows if row["version"] == NAME}


def run(identities: Sequence[str], parts: dict[str, Models], limit: int = 10**6) -> dict[str, str]:
    """Id → answer; what the journal holds is not asked again, and at most `limit` others are."""
    signal.signal(signal.SIGPROF, _endless)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity(50)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    bases, answers, answered = described(parts), {}, _journal()
    JOURNAL.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, JOURNAL.open("a") as journal:
        for identity in identities:
            case = image_grid.build(identity, bases)
            key = hashlib.sha256(identity.encode() + case.file + repr(case.meant).encode()).hexdigest()[:24]
            if key not in answered and limit > 0:
                limit -= 1
                answered[key] = ask(case, parts[case.base], Path(scratch))
                journal.write(
                    json.dumps({"version": NAME, "case": key, "id": identity, "answer": answered[key]}) + "\n"
                )
                journal.flush()
            if key in answered:
                answers[identity] = answered[key]
    return answers


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if diffusers and the registry disagree anywhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--limit", type=int, default=10**6, help="how many cases may be asked that the journal lacks")
    options = parser.parse_args(arguments)
    parts = models()
    bases = described(parts)
    identities = [i for i in image_grid.ids(bases)
                  if not options.ids or any(i.startswith(p) or fnmatch.fnmatch(i, p) for p in options.ids)]  # fmt: skip
    answers = run(identities, parts, options.limit)
    specs = image_grid.base_specs(bases)
    different = {
        i: text for i in answers if (text := image_grid.disagreement(image_grid.build(i, bases), specs, answers[i]))
    }
    for identity, text in different.items():
        print(f"{identity:60} {answers[identity]:16} {text}")
    counts = {word: sum(answer.startswith(word) for answer in answers.values()) for word in ("exact", "wrong")}
    print(f"{NAME}: {len(answers)} cases, {counts}, {len(different)} differences")
    if options.record:
        rows = {"version": NAME, "bases": bases, "answers": {i: answers[i] for i in image_grid.sample(answers)}}
        text = json.dumps(rows, indent=0, sort_keys=True)
        text = re.sub(r"\[\n([\d,\n]+)\n\]", lambda shape: f"[{shape[1]}]".replace("\n", ""), text)
        image_grid.RECORDED.write_text(text + "\n")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
