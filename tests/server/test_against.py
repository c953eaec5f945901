"""How large the weights are that updates are put beside: of fused matrices, experts and tied heads."""

from __future__ import annotations

import pytest

from registry.compat.paths import Paths
from registry.server.evaluation.weights import against


def test_a_fused_matrix_is_as_large_as_its_parts_together() -> None:
    parts = {f"transformer.transformer_blocks.0.attn.to_{leaf}": 2.0 for leaf in "qkv"}
    norms = {f"{path}.weight": size for path, size in parts.items()}
    fused = "lora_unet_double_blocks_0_img_attn_qkv"
    assert against.BaseNorms("flux", norms, paths=Paths("kohya", parts)).norm(fused) == pytest.approx(12**0.5, rel=1e-4)
    missing = against.BaseNorms("flux", dict(list(norms.items())[:2]), paths=Paths("kohya", parts))
    assert missing.norm(fused) is None


def test_a_block_of_experts_is_as_large_as_its_experts_together() -> None:
    at = "model.layers.0.block_sparse_moe"
    apart = {f"{at}.experts.{n}.{leaf}.weight": 2.0 for n in range(3) for leaf in ("w1", "w2", "w3")}
    base = against.BaseNorms("moe", {**apart, f"{at}.gate.weight": 5.0})
    sizes = [base.norm(f"model.layers.0.mlp.{name}") for name in ("experts.gate_up_proj", "experts.down_proj", "gate")]
    assert sizes == [pytest.approx(24**0.5, rel=1e-4), pytest.approx(12**0.5, rel=1e-4), 5.0]
    assert against.BaseNorms("fused", {"x.experts.down_proj": 3.0}).norm("x.experts.down_proj") == 3.0


def test_a_tied_head_is_compared_with_the_embedding() -> None:
    base = against.BaseNorms("tied", {"model.embed_tokens.weight": 4.0})
    assert (base.norm("lm_head"), base.share("lm_head", 1.0)) == (4.0, 0.25)
    assert base.share("model.layers.0.self_attn.q_proj", 1.0) is None
