"""What PEFT refuses in one configuration beyond single values (fields.json): fields that exclude or need one another.

Each rule names its source in PEFT; the classes' `__post_init__` raise these errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from registry.adapters.peft import fields, initializations

Values = Mapping[str, Any]


def refused(method: str, values: Values) -> Iterator[tuple[str, str]]:
    """Yield each field that PEFT refuses beside the others, and the reason."""
    rows = fields.table().get(method, {})

    def value_of(name: str) -> Any:
        return values.get(name, rows.get(name, {}).get("default"))

    for field, row in rows.items():
        is_written = values.get(field) not in (None, [], "")
        if is_written and values.get(str(row.get("needs"))) is None and "needs" in row:
            yield field, f"needs {row['needs']} beside it"
        if is_written and row.get("excludes_pattern") and isinstance(values.get("target_modules"), str):
            yield field, "cannot stand beside a target_modules that is one text"
    for field, rule_method, is_broken, reason in RULES:
        if rule_method == method and field in values and is_broken(value_of):
            yield field, reason


Read = Callable[[str], Any]

RULES: tuple[tuple[str, str, Callable[[Read], Any], str], ...] = (
    # lora/layer.py LoraLayer.update_layer
    ("init_lora_weights", "LORA",
     lambda read: initializations.find_written(read("init_lora_weights")) is None, "is no initialization of PEFT"),
    # lora/config.py LoraConfig
    ("lora_bias", "LORA",
     lambda read: read("lora_bias") and (read("use_dora") or read("init_lora_weights") not in (True, False)),
     "is taken only without DoRA and with init_lora_weights true or false"),
    ("init_lora_weights", "LORA",
     lambda read: read("init_lora_weights") == "loftq" and not read("loftq_config"), "is loftq without a loftq_config"),
    # adalora/config.py AdaLoraConfig
    ("use_dora", "ADALORA", lambda read: read("use_dora"), "is not taken by AdaLoRA"),
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
    # supertuning/config.py SupertuningConfig
    ("lora_alpha", "SUPERTUNING",
     lambda read: read("lora_alpha") is not None and read("r") is None, "needs an r beside it"),
)  # fmt: skip
"""(field, method, whether it is broken, why); a field that is not written breaks nothing."""
