"""`COST_LIMITS`: fields of PEFT's configurations that cost time or memory, and the largest value of each.

They give the length of a loop or the size of a tensor that PEFT makes before it compares anything with the file. The
limits are far over what the methods' papers use. A worker's limits of time and memory hold behind them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from registry.files import CONFIG
from registry.findings import Finding
from registry.strict.fields import walk

_STEPS, _LAYERS, _SUBMODULES = 100, 256, 8
_COUNT, _WIDTH, _VALUES = 2**12, 2**18, 2**27
COST_LIMITS: Mapping[str, int] = {
    **dict.fromkeys(("loftq_iter", "num_cayley_neumann_terms", "psoft_svd_lowrank_niter"), _STEPS),
    **dict.fromkeys(("depth", "encoder_num_layers", "shadow_num_hidden_layers", "xlora_depth"), _LAYERS),
    "num_transformer_submodules": _SUBMODULES,
    **dict.fromkeys(
        ("adapter_layers", "asa_target_subspaces", "boft_n_butterfly_factor", "gralora_k", "hybrid_r", "init_r",
         "mini_r", "n_skills", "n_splits", "nblocks", "num_B", "num_layers", "num_ranks", "num_subspaces", "r",
         "shadow_num_attention_heads", "stride_A", "subspace_rank", "target_r", "topk"), _COUNT,
    ),
    **dict.fromkeys(
        ("adapter_len", "block_size", "boft_block_num", "boft_block_size", "encoder_hidden_size", "group_size",
         "hidden_size", "n_tasks", "num_attention_heads", "num_tasks", "num_vectors", "num_virtual_tokens",
         "oft_block_size", "shadow_hidden_size", "shadow_intermediate_size", "token_dim", "u", "update_hidden_size",
         "vector_length", "xlora_size"), _WIDTH,
    ),
    **dict.fromkeys(("n_frequency", "theta_d_length"), _VALUES),
}  # fmt: skip
"""Field at any depth → the limit, of PEFT's configuration classes."""


def check_costs(values: Mapping[str, Any]) -> Iterator[Finding]:
    """A failing finding for each field over its limit."""
    for location, field, value in walk(dict(values)):
        limit = COST_LIMITS.get(field)
        if limit is not None and isinstance(value, int | float) and value > limit:
            message = f"{location} is {str(value)[:40]}; the limit is {limit}, because time or memory grow with it"
            yield Finding.of(
                "error", "config.value_excessive", f"{CONFIG}: {location}", message, f"at most {limit}", str(value)[:40]
            )
