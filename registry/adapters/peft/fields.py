"""The fields of PEFT's configuration classes, their defaults, and the kinds of values that PEFT refuses.

fields.json is generated: `python -m scripts.peft_fields` asks the installed PEFT. A newer PEFT is a new file.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from registry.findings import Finding
from registry.versions.files import CONFIG

OTHERS = frozenset({"base_model_class", "enable_lora", "merge_weights", "parent_library", "runtime_config"})
"""Fields of older versions, of nested objects, and of the running process."""


def kind_of(value: Any) -> str:
    """The kind of a JSON value, as fine as PEFT's own checks tell values apart."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str):
        return "text" if value else "empty text"
    if isinstance(value, (list, dict)):
        kind = "list" if isinstance(value, list) else "object"
        return kind if value else f"empty {kind}"
    if value <= 1:
        return "zero" if value == 0 else "negative number" if value < 0 else "one" if value == 1 else "fraction"
    return "whole number over 1" if isinstance(value, int) else "fraction over 1"


@cache
def table() -> dict[str, dict[str, dict[str, Any]]]:
    """Method → field → what PEFT does with it.

    `default`; `refuses`: kinds of values; `choices`: the only texts that it takes; `needs`: a field that must be beside
    it; `excludes_pattern`: it cannot stand beside a `target_modules` that is one text.
    """
    data = json.loads(Path(__file__).with_name("fields.json").read_bytes())
    methods: dict[str, dict[str, dict[str, Any]]] = data["methods"]
    return methods


@cache
def names() -> frozenset[str]:
    """Every field that a configuration may have."""
    return OTHERS.union(*table().values())


@cache
def pattern_fields(method: str) -> tuple[str, ...]:
    """The fields of a method that give values by pattern."""
    return tuple(name for name in table().get(method, {}) if name.endswith("_pattern") and name != "layers_pattern")


def default(method: str, field: str) -> Any:
    """What PEFT takes for a field that is not written; None also for a field that the method does not have."""
    return table().get(method, {}).get(field, {}).get("default")


@cache
def _refusing(method: str) -> tuple[tuple[str, str, str, frozenset[str], tuple[str, ...]], ...]:
    """(field, the object that holds it, its name there, refused kinds, only texts) of each field that has some."""
    return tuple(
        (field, start, name, frozenset(row["refuses"]), tuple(row.get("choices", ())))
        for field, row in table().get(method, {}).items() if "refuses" in row
        for start, _, name in [field.rpartition(".")]
    )  # fmt: skip


def refusals(method: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each field whose value PEFT refuses when it loads the adapter, and the reason."""
    for field, start, name, refused, choices in _refusing(method):
        holder = values.get(start) if start else values
        if not isinstance(holder, dict) or name not in holder or holder[name] in choices:
            continue
        if (kind := kind_of(holder[name])) in refused:
            one_of = choices and kind == "text"
            yield field, f"must be one of {', '.join(choices)}" if one_of else f"must not be {kind}"


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
"""Field at any depth → the limit. PEFT makes loops and tensors of these lengths before it compares anything with the
file. The limits are far over what the methods' papers use; a worker's limits of time and memory hold behind them."""


def check_costs(fields: Iterable[tuple[str, str, Any]]) -> Iterator[Finding]:
    """A failing finding for each field (location, key, value) over its limit."""
    for location, field, value in fields:
        limit = COST_LIMITS.get(field)
        if limit is not None and isinstance(value, int | float) and value > limit:
            message = f"{location} is {str(value)[:40]}; the limit is {limit}, because time or memory grow with it"
            yield Finding.of(
                "error", "config.value_excessive", f"{CONFIG}: {location}", message, f"at most {limit}", str(value)[:40]
            )
