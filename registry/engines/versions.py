"""Versions of engines: compared by their leading numbers, and values that hold from a version on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.errors import Invalid

Version = tuple[int, ...]


def version_of(text: str) -> Version:
    """`0.32.0.post1` → (0, 32, 0): the leading numbers. `Invalid` (SETTING_INVALID) if there are none."""
    numbers: list[int] = []
    for part in text.split("."):
        if not part.isascii() or not part.isdigit() or len(part) > 9:
            break
        numbers.append(int(part))
    if not numbers:
        raise Invalid("SETTING_INVALID", f"version {text[:40]!r} begins with no number", next_step="write 0.32.0")
    return tuple(numbers)


def at(spans: Mapping[str, Any], version: Version) -> Any:
    """The value that holds at a version, of values by the first version that has them; None before the first."""
    covering = [(since, value) for text, value in spans.items() if (since := version_of(text)) <= version]
    return max(covering, key=lambda pair: pair[0])[1] if covering else None
