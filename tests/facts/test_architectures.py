"""What PEFT itself makes for each architecture fits: no honest adapter of a model that the library knows is told no.

The models are tiny and random; the names, shapes and fusions are those of the library's own classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from registry.client.local.adapter_folder import read_adapter
from registry.client.local.base_folder import base_spec_from
from registry.compat import check
from registry.evaluation.verdicts import Outcome, add_up
from tests import fixtures

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not fixtures.AVAILABLE, reason="the worker extra (torch, transformers, peft) is not installed"),
]

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
           "shared_expert_intermediate_size": 24}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "n_routed_experts": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 8, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {}, "qwen3": {"head_dim": 8}, "gemma2": {"head_dim": 8}, "phi": {}, "phi3": {}, "gpt_neox": {}, "opt": {},
    "falcon": {}, "bloom": {}, "olmo2": {}, "starcoder2": {}, "cohere2": {}, "glm4": {"head_dim": 8},
    "mixtral": EXPERTS, "qwen2_moe": EXPERTS, "qwen3_moe": EXPERTS | {"head_dim": 8}, "olmoe": EXPERTS,
    "deepseek_v3": EXPERTS | LATENT, "gpt_oss": EXPERTS | {"head_dim": 8},
}  # fmt: skip
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_adapter_that_peft_makes_fits_the_base_that_it_was_made_on(name: str, tmp_path: Path) -> None:
    import peft
    import transformers

    config = transformers.AutoConfig.for_model(name, **SIZES | ARCHITECTURES[name])
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    base, _ = base_spec_from(tmp_path / "base", "base")
    count = 0
    for targets in ("all-linear", SEVEN):
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        try:
            wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
        except ValueError:  # an architecture without such names
            continue
        folder = tmp_path / f"adapter-{count}"
        wrapped.save_pretrained(folder)
        findings = check(read_adapter(folder).contents, base)
        assert add_up(findings) in (Outcome.PASS, Outcome.WARN), [f.message for f in findings]
        count += 1
    assert count
