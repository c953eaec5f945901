"""`INITIALIZATIONS`: every value of PEFT's `init_lora_weights`, and what PEFT does to the base's weights for it.

An initialization that changes the base trains A and B against changed weights, so its adapter is wrong on the plain
base. A value without a row is treated as one that changes the base.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Initialization:
    """One value of `init_lora_weights`. `is_prefix`: values that begin with `name` mean it too (`pissa_niter_4`).

    `changes_base`: training starts from changed base weights.
    `changes_base_at_load`: loading a saved adapter changes the base again, or needs data that only training had.
    `reversible`: the change follows from the base's weights alone, so a worker can compute it again and subtract it.
    """

    name: str
    source: str
    is_prefix: bool = False
    changes_base: bool = False
    changes_base_at_load: bool = False
    reversible: bool = False


_LAYER = "peft/tuners/lora/layer.py: LoraLayer."
INITIALIZATIONS: tuple[Initialization, ...] = (
    Initialization("true", _LAYER + "reset_lora_parameters: A is Kaiming-uniform, B is zero"),
    Initialization("false", _LAYER + "update_layer: A and B stay random"),
    Initialization("gaussian", _LAYER + "reset_lora_parameters: A is normal, B is zero"),
    Initialization("eva", _LAYER + "update_layer: B is zero; A comes from the activations (eva.py)"),
    Initialization("orthogonal", _LAYER + "orthogonal_init: A and B are random orthogonal matrices"),
    Initialization("mica", _LAYER + "mica_init: B holds minor singular vectors and A is zero, so the base stays"),
    Initialization("pissa", _LAYER + "pissa_init: subtracts the principal components, at load again",
                   is_prefix=True, changes_base=True, changes_base_at_load=True, reversible=True),
    Initialization("olora", _LAYER + "olora_init: subtracts the start of a QR decomposition, at load again",
                   changes_base=True, changes_base_at_load=True, reversible=True),
    Initialization("corda", _LAYER + "corda_init: subtracts components by covariances; fails at load without",
                   is_prefix=True, changes_base=True, changes_base_at_load=True),
    Initialization("loftq", _LAYER + "loftq_init: replaces the weights by quantized ones, at load again",
                   changes_base=True, changes_base_at_load=True),
    Initialization("lora_ga", _LAYER + "lora_ga_init: subtracts components by gradients; nothing at load",
                   changes_base=True),
)  # fmt: skip


def find(value: str) -> Initialization | None:
    """The row of a value in lower case; empty means true or false. None if PEFT has no such value."""
    for row in INITIALIZATIONS:
        if row.name == (value or "true") or (row.is_prefix and value.startswith(row.name)):
            return row
    return None


def find_written(value: object) -> Initialization | None:
    """The row of a value as a configuration has it: null, true, false or text. None if PEFT raises an error for it."""
    if value is None or isinstance(value, bool) or value == "":
        return find("")
    if not isinstance(value, str) or value in ("true", "false"):
        return None
    is_readable = not value.lower().startswith("pissa") or re.fullmatch(r"pissa(_niter_[0-9]{1,2})?", value)
    return find(value.lower()) if is_readable else None


def changes_base(value: str) -> bool:
    """Whether this adapter was trained on changed base weights; True also for an unknown value."""
    row = find(value)
    return row is None or row.changes_base


def changes_base_at_load(value: str) -> bool:
    """Whether loading this adapter with PEFT changes the base or may fail; True also for an unknown value."""
    row = find(value)
    return row is None or row.changes_base_at_load


def is_reversible(value: str) -> bool:
    """Whether the change of the base follows from the base's weights alone."""
    row = find(value)
    return row is not None and row.reversible
