"""What PEFT refuses in one configuration beyond single values (fields.json): fields that exclude or need one another.

Each rule names its source in PEFT; the classes' `__post_init__` raise these errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from registry.adapters.methods import find
from registry.adapters.peft import fields, initializations

Values = Mapping[str, Any]


def refusals(method: str, values: Values) -> Iterator[tuple[str, str]]:
    """Yield each field that PEFT refuses beside the others, and the reason."""
    rows = fields.table().get(method, {})

    def value_of(name: str) -> Any:
        return values.get(name, rows.get(name, {}).get("default"))

    needs, sizes, rules = _of_method(method)
    for field in needs:
        row = rows[field]
        if values.get(field) in (None, [], ""):
            continue
        if "needs" in row and values.get(row["needs"]) is None:
            yield field, f"needs {row['needs']} beside it"
        if row.get("excludes_pattern") and isinstance(values.get("target_modules"), str):
            yield field, "cannot stand beside a target_modules that is one text"
    # peft_model.py _prepare_prompt_learning_config: what is written counts, not the base's
    for field in sizes:
        size = value_of(field)
        if size is not None and (not isinstance(size, int) or size < 1):
            yield field, "must be a whole number over 0"
    for field, is_broken, reason in rules:
        if is_broken(value_of):
            yield field, reason


@cache
def _of_method(method: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[Rule, ...]]:
    """Of one method: fields that need or exclude others, sizes of prompts, and the rules of `RULES`."""
    rows = fields.table().get(method, {})
    shape = next((rule.shape for rule in find(method).tensors if rule.name == "prompt_embeddings"), "")
    return (
        tuple(field for field, row in rows.items() if "needs" in row or "excludes_pattern" in row),
        tuple(field for field, part in _PROMPT_SIZES.items() if part in shape),
        tuple((field, is_broken, reason) for field, owner, is_broken, reason in RULES
              if owner == method or (owner == EVERY and field in rows)),
    )  # fmt: skip


Read = Callable[[str], Any]
Rule = tuple[str, Callable[[Read], Any], str]
"""Field, whether its value beside the others is refused, and the reason."""


def _has_unknown(config: Any, holder: str) -> bool:
    """Whether an object in a configuration of LoRA has a field that PEFT's class for it does not have."""
    return isinstance(config, dict) and any(f"{holder}.{name}" not in fields.table()["LORA"] for name in config)


def _is_masks(value: Any, length: Any) -> bool:
    """Whether PEFT can cut AdaLoRA's factors by these: tensor → which of its rows were left after training."""
    masks = {} if value is None else value
    return isinstance(masks, dict) and all(
        isinstance(mask, list) and len(mask) == length and all(isinstance(bit, bool) for bit in mask)
        for mask in masks.values()
    )


def _is_number(text: str) -> bool:
    """Whether Python's `float` reads the text."""
    try:
        float(text)
    except ValueError:
        return False
    return True


_PROMPT_SIZES = {
    "num_layers": "prefix_width",
    "num_transformer_submodules": "num_virtual_tokens",
    "token_dim": "submodules",
}
"""Field → the part of the shape formula of those prompts that are as large as it says."""
EVERY = ""
"""The method of a rule that holds for every method with its field."""
RULES: tuple[tuple[str, str, Callable[[Read], Any], str], ...] = (
    # lora/layer.py LoraLayer.update_layer
    ("init_lora_weights", "LORA",
     lambda read: initializations.find_written(read("init_lora_weights")) is None, "is no initialization of PEFT"),
    # lora/layer.py LoraLayer.update_layer: below 0 means none, and 1 drops everything; no trainer writes either
    ("lora_dropout", "LORA",
     lambda read: isinstance(read("lora_dropout"), int | float)
     and (isinstance(read("lora_dropout"), bool) or not 0 <= read("lora_dropout") < 1),
     "must be a probability under 1"),
    # lora/config.py LoraConfig
    ("lora_bias", "LORA",
     lambda read: read("lora_bias") and (read("use_dora") or read("init_lora_weights") not in (True, False)),
     "is taken only without DoRA and with init_lora_weights true or false"),
    ("init_lora_weights", "LORA",
     lambda read: read("init_lora_weights") == "loftq" and not read("loftq_config"), "is loftq without a loftq_config"),
    # lora/layer.py LoraLayer.corda_init: reads what preprocess_corda left on the modules of the base in memory
    ("init_lora_weights", "LORA", lambda read: str(read("init_lora_weights")).startswith("corda"),
     "is CorDA, which PEFT loads only after preprocess_corda on the base; it can save a plain LoRA adapter instead: "
     "path_initial_model_for_weight_conversion"),
    # lora/tp_layer.py dispatch_megatron: imports Megatron for every module
    ("megatron_config", "LORA", lambda read: read("megatron_config"),
     "needs the library Megatron, which PEFT does not bring along"),
    # lora/config.py ArrowConfig.task_adapter_names (not in files), lora/arrow.py ArrowLoraLinearLayer
    ("arrow_config", "LORA", lambda read: read("arrow_config") is not None,
     "names its adapters in the running process only: create_arrow_model makes it from plain LoRA adapters"),
    # lora/config.py LoraConfig: makes this object of all its fields, and others of those that their class has
    *(("monteclora_config", method, lambda read: _has_unknown(read("monteclora_config"), "monteclora_config"),
       "has a field that PEFT does not know") for method in ("LORA", "ADALORA")),
    # adalora/config.py AdaLoraConfig
    ("use_dora", "ADALORA", lambda read: read("use_dora"), "is not taken by AdaLoRA"),
    ("loftq_config", "ADALORA", lambda read: read("loftq_config"), "is not taken by AdaLoRA"),
    ("init_lora_weights", "ADALORA", lambda read: read("init_lora_weights") == "loftq",
     "is loftq, which AdaLoRA does not take"),
    ("total_step", "ADALORA", lambda read: read("total_step") is None, "must be a number of steps"),
    ("tinit", "ADALORA",
     lambda read: all(isinstance(read(name), int | float) for name in ("tinit", "tfinal", "total_step"))
     and read("tinit") >= read("total_step") - read("tfinal"), "must be less than total_step - tfinal"),
    # adalora/model.py AdaLoraModel.resize_modules_by_rank_pattern
    ("rank_pattern", "ADALORA", lambda read: not _is_masks(read("rank_pattern"), read("init_r")),
     "must hold a list of init_r booleans for each module"),
    # boft/config.py, oft/config.py: exactly one of two
    ("boft_block_size", "BOFT",
     lambda read: bool(read("boft_block_size")) is bool(read("boft_block_num")), "or boft_block_num must be 0"),
    ("oft_block_size", "OFT",
     lambda read: bool(read("oft_block_size")) is bool(read("r")), "or r must be 0"),
    # gralora/config.py GraloraConfig
    ("gralora_k", "GRALORA",
     lambda read: type(read("r")) is int and type(read("gralora_k")) is int and read("gralora_k") > 0
     and read("r") % read("gralora_k"), "must divide r"),
    # ia3/config.py IA3Config
    ("feedforward_modules", "IA3",
     lambda read: isinstance(read("feedforward_modules"), list) and isinstance(read("target_modules"), list)
     and not set(map(str, read("feedforward_modules"))) <= set(map(str, read("target_modules"))),
     "must be a part of target_modules"),
    # adaption_prompt/model.py AdaptionPromptModel.add_adapter: the last so many layers of the base
    ("adapter_layers", "ADAPTION_PROMPT", lambda read: not isinstance(read("adapter_layers"), int),
     "must be a whole number"),
    # cartridge/config.py CartridgeConfig, cartridge/model.py CartridgeEncoder, peft_model.py get_prompt
    ("num_frozen_tokens", "CARTRIDGE",
     lambda read: all(type(read(name)) is int for name in ("num_frozen_tokens", "num_virtual_tokens"))
     and read("num_frozen_tokens") > read("num_virtual_tokens"), "must not be over num_virtual_tokens"),
    # prompt_tuning/config.py PromptTuningConfig
    ("tokenizer_kwargs", EVERY, lambda read: read("tokenizer_kwargs") and read("prompt_tuning_init") != "TEXT",
     "is taken only with prompt_tuning_init TEXT"),
    # cpt/config.py CPTConfig
    ("task_type", "CPT", lambda read: read("task_type") != "CAUSAL_LM", "must be CAUSAL_LM"),
    *((field, "CPT", lambda read, field=field: isinstance(read(field), list)
       and len(read(field)) != len(tokens if isinstance(tokens := read("cpt_token_ids"), list) else [0]),
       "must be as long as cpt_token_ids")
      for field in ("cpt_mask", "cpt_tokens_type_mask")),
    # delora/layer.py DeloraLayer.reset_delora_parameters
    ("delora_lambda", "DELORA", lambda read: isinstance(read("delora_lambda"), str) and not _is_number(
        read("delora_lambda")), "must be a number"),
    # frod/model.py, pvera/model.py, randlora/model.py, vera/model.py: the seed of a generator
    ("projection_prng_key", EVERY, lambda read: isinstance(read("projection_prng_key"), float),
     "must be a whole number"),
    # lily/model.py LilyModel: an index of a list
    ("stride_A", "LILY", lambda read: type(read("stride_A")) is float, "must be a whole number"),
    # supertuning/config.py SupertuningConfig
    ("lora_alpha", "SUPERTUNING",
     lambda read: read("lora_alpha") is not None and read("r") is None, "needs an r beside it"),
    # unilora/layer.py: the indices are drawn again at each load
    ("proj_seed", "UNILORA", lambda read: read("proj_seed") is None and not read("save_indices"),
     "must be a whole number where the indices are not saved"),
    ("lora_dropout", "SUPERTUNING",
     lambda read: isinstance(read("lora_dropout"), int | float) and not 0 <= read("lora_dropout") < 1,
     "must be a probability under 1"),
)  # fmt: skip
"""(field, method, whether it is broken, why); a field that is not written has its default."""
