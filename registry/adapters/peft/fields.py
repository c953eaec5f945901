"""The fields of PEFT's configuration classes, their defaults, and the kinds of values that PEFT refuses.

fields.json is generated: `python -m scripts.peft_fields` asks the installed PEFT. A newer PEFT is a new file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

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
    data = json.loads(resources.files(__package__).joinpath("fields.json").read_bytes())
    methods: dict[str, dict[str, dict[str, Any]]] = data["methods"]
    return methods


@cache
def names() -> frozenset[str]:
    """Every field that a configuration may have."""
    return OTHERS.union(*table().values())


def default(method: str, field: str) -> Any:
    """What PEFT takes for a field that is not written; None also for a field that the method does not have."""
    return table().get(method, {}).get(field, {}).get("default")


def refused(method: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each field whose value PEFT refuses when it loads the adapter, and the reason."""
    for field, row in table().get(method, {}).items():
        start, dot, inner = field.partition(".")
        holder = values.get(start) if dot else values
        name = inner or start
        if not isinstance(holder, Mapping) or name not in holder:
            continue
        value = holder[name]
        if isinstance(value, str) and value in row.get("choices", ()):
            continue
        if (kind := kind_of(value)) in row.get("refuses", ()):
            choices = row.get("choices", ()) if kind == "text" else ()
            yield field, f"must be one of {', '.join(choices)}" if choices else f"must not be {kind}"
