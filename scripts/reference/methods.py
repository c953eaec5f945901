"""docs/reference/methods.md: PEFT methods and initializations, from `registry.adapters`."""

from __future__ import annotations

from registry.adapters.methods import LORA_VARIANTS, METHODS
from registry.adapters.peft.initializations import INITIALIZATIONS
from registry.engines import rulebook
from scripts.reference.tables import table

INTRODUCTION = """\
# PEFT methods

An adapter of any other method is refused.

- *Shapes*: the compat check compares the shapes of its tensors with the base; for other methods it says `unknown`.
- *Merged*: its effect equals some change of weights.
- *Fused by*: what writes the update into the base's weights.
- *Combined*: it has a low-rank weighted sum.
- *Hot-swapped*: smoke tests swap it on a model that stays loaded.
"""
SHAPES = """\
## Tensors

Each targeted module must have all of these tensors beside its factor pair and no others; those under `base_model.` are
there once. Sizes are formulas over the module's inputs and outputs, its rank, and the fields of the configuration.
"""
VARIANTS = """\
## LoRA variants

A configuration with one of these fields is accepted with a warning: a runtime for plain LoRA computes something else.
"""
BEGINNINGS = """\
## Initializations

The values of `init_lora_weights`. An adapter that was trained on changed base weights is wrong on the plain base.
"""


def markdown() -> str:
    """The whole page."""
    methods = (
        (
            f"`{row.name}`",
            _yes(row.shapes_known),
            _yes(row.mergeable),
            row.fused_by,
            _yes(row.combinable),
            _yes(row.hot_swappable),
        )
        for row in METHODS.values()
    )
    beginnings = (
        (
            f"`{row.name}{'…' if row.is_prefix else ''}`",
            _yes(row.changes_base),
            _yes(row.changes_base_at_load),
            row.source,
        )
        for row in INITIALIZATIONS
    )
    version = rulebook.engine("peft").examined[-1]
    tensors = (
        (f"`{row.name}`", f"`{'base_model.' * rule.is_shared}{rule.name}`", f"`{rule.shape}`",
         "" if rule.condition == "True" else f"`{rule.condition}`")
        for row in METHODS.values()
        for rule in row.tensors
    )  # fmt: skip
    parts = [
        INTRODUCTION,
        table(["method", "shapes", "merged", "fused by", "combined", "hot-swapped"], methods),
        SHAPES,
        table(["method", "tensor", "shape", "only if"], tensors),
        VARIANTS,
        table(["field", "meaning"], ((f"`{field}`", meaning) for field, meaning in LORA_VARIANTS.items())),
        BEGINNINGS,
        table(["value", "trained on a changed base", "changes it again at load", f"in PEFT {version}"], beginnings),
    ]
    return "\n".join(parts)


def _yes(value: bool) -> str:
    return "yes" if value else ""
