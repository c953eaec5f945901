"""Every denoiser that the worker renders with: an adapter that diffusers loads changes the image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from registry.evaluation.thresholds import Thresholds
from registry.worker.model.image import Pipeline
from registry.worker.smoke.image import ImageTest

HEADS = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1}
TINY: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("StableDiffusion3Pipeline", "SD3Transformer2DModel", HEADS | {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "joint_attention_dim": 32,
        "caption_projection_dim": 32, "pooled_projection_dim": 16, "pos_embed_max_size": 8}),
    ("WanPipeline", "WanTransformer3DModel", HEADS | {
        "in_channels": 4, "out_channels": 4, "text_dim": 32, "freq_dim": 32, "ffn_dim": 48, "rope_max_seq_len": 32}),
    ("LTXPipeline", "LTXVideoTransformer3DModel", HEADS | {
        "in_channels": 4, "out_channels": 4, "cross_attention_dim": 32, "caption_channels": 32}),
    ("ZImagePipeline", "ZImageTransformer2DModel", {
        "in_channels": 4, "dim": 32, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
        "cap_feat_dim": 32, "axes_dims": [4, 6, 6], "axes_lens": [64, 64, 64]}),
)  # fmt: skip


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize(("pipeline", "denoiser", "sizes"), TINY)
def test_an_adapter_changes_the_image_or_fails(
    pipeline: str, denoiser: str, sizes: dict[str, Any], moves: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = getattr(diffusers, denoiser)(**sizes)
    with torch.no_grad():
        for parameter in model.parameters():  # some begin as zeros, and nothing would come through
            parameter.add_(torch.randn_like(parameter) / 10)
    model.save_pretrained(tmp_path / "base" / "transformer")
    (tmp_path / "base" / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    tensors = {}
    for path, module in model.named_modules():
        if path.endswith("to_q"):
            at = f"transformer.{path}"
            tensors[f"{at}.lora_A.weight"] = torch.randn(2, module.in_features)
            tensors[f"{at}.lora_B.weight"] = torch.randn(module.out_features, 2) * moves
    save_file(tensors, adapter / "pytorch_lora_weights.safetensors")
    result = ImageTest(Pipeline.load(tmp_path / "base", "tiny"), adapter, Thresholds()).run()
    assert [finding.code for finding in result.findings] == ([] if moves else ["smoke.image_unchanged"])
