"""What diffusers saves itself, of every family: the worker passes it whole, and no file that lost something."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry.evaluation.verdicts import Outcome, add_up
from tests import fixtures
from tests.worker.image_cases import Case, Update

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not fixtures.IMAGES_AVAILABLE, reason="the images extra (diffusers) is not installed"),
]
if fixtures.IMAGES_AVAILABLE:
    import diffusers
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model_state_dict
    from safetensors import safe_open

    from tests.worker import diffusers_oracle

Models = dict[str, Any]
RANK, ALPHA = 4, 8
TARGETS = ["to_q", "to_k", "to_v"]


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


ABSENT = ("vae", "tokenizer", "scheduler")
PIPELINES: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "sd": ("StableDiffusionPipeline", ("safety_checker", "feature_extractor"), {"requires_safety_checker": False}),
    "sdxl": ("StableDiffusionXLPipeline", ("tokenizer_2",), {"add_watermarker": False}),
    "sd3": ("StableDiffusion3Pipeline", ("tokenizer_2", "tokenizer_3", "text_encoder_3"), {}),
    "flux": ("FluxPipeline", ("tokenizer_2", "text_encoder_2"), {}),
    "auraflow": ("AuraFlowPipeline", ("text_encoder",), {}),
    "wan": ("WanPipeline", ("text_encoder",), {}), "qwen": ("QwenImagePipeline", ("text_encoder",), {}),
    "ltx": ("LTXPipeline", ("text_encoder",), {}),
    "hunyuan-video": ("HunyuanVideoPipeline", ("text_encoder", "text_encoder_2", "tokenizer_2"), {}),
    "hidream": ("HiDreamImagePipeline", ("text_encoder", *(f"{part}_{n}" for part in ("text_encoder", "tokenizer")
                                         for n in (2, 3, 4))), {}),
    "lumina2": ("Lumina2Pipeline", ("text_encoder",), {}), "z-image": ("ZImagePipeline", ("text_encoder",), {}),
    "cogvideox": ("CogVideoXPipeline", ("text_encoder",), {}), "sana": ("SanaPipeline", ("text_encoder",), {}),
    "cogview4": ("CogView4Pipeline", ("text_encoder",), {}), "mochi": ("MochiPipeline", ("text_encoder",), {}),
}  # fmt: skip


def saved(family: str, parts: Models, folder: Path) -> Case:
    """What the pipeline of this family writes of a LoRA on the attention of its U-Net or transformer."""
    component = next(iter(parts))
    model = copy.deepcopy(parts[component])
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, init_lora_weights=False))
    layers = {f"{component}_lora_layers": get_peft_model_state_dict(model)}
    told = {f"{component}_lora_adapter_metadata": model.peft_config["default"].to_dict()}
    getattr(diffusers, PIPELINES[family][0]).save_lora_weights(folder, **layers, **told)
    case = Case(family)
    with safe_open(next(folder.glob("*.safetensors")), "pt") as file:
        case.metadata = file.metadata()
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            case.tensors[name] = ("F32", tuple(tensor.shape), tensor.numpy().tobytes())
    for a in [name for name in case.tensors if name.endswith(".lora_A.weight")]:
        module = a.removesuffix(".lora_A.weight")
        case.meant.append(Update(module, a, f"{module}.lora_B.weight", ALPHA / RANK))
    assert len(case.meant) * 2 == len(case.tensors) > 2
    return case


def lost(case: Case) -> Case:
    """Without one half of a pair."""
    tensors = {name: value for name, value in case.tensors.items() if name != case.meant[0].b}
    return replace(case, tensors=tensors, meant=[])


def renamed(case: Case) -> Case:
    """With a module that the base does not have."""
    halves = {case.meant[0].a, case.meant[0].b}
    tensors = {n.replace(".to_", ".at_") if n in halves else n: value for n, value in case.tensors.items()}
    return replace(case, tensors=tensors, meant=[])


@pytest.fixture(scope="module")
def families() -> dict[str, Models]:
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity(50)
    return models()


@pytest.mark.parametrize("family", PIPELINES)
def test_a_file_that_diffusers_saved_passes_and_without_a_half_or_a_name_it_does_not(
    family: str, families: dict[str, Models], tmp_path: Path
) -> None:
    kind, absent, others = PIPELINES[family]
    options = {**dict.fromkeys((*ABSENT, *absent)), **others}
    options |= {"scheduler": diffusers.DDIMScheduler()} if family == "sd" else {}
    parts = families[family]
    case = saved(family, parts, tmp_path / "saved")
    assert diffusers_oracle.ask(case, parts, (kind, options), tmp_path) == "exact"
    assert add_up(diffusers_oracle.worker_says(case, parts, kind, tmp_path)) is Outcome.PASS
    for broken in (lost(case), renamed(case)):
        assert add_up(diffusers_oracle.worker_says(broken, parts, kind, tmp_path)) is not Outcome.PASS
