"""Updates of many modules in few lines: equal updates in several layers are one line with their numbers as a range.

>>> of_updates([("layers.0.q", 8, 16.0, 2.0), ("layers.1.q", 8, 16.0, 2.0)])
[{'path': 'layers.*.q', 'layers': '0-1', 'modules': 2, 'rank': 8, 'alpha': 16.0, 'scale': 2.0}]
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

LINES_LIMIT = 200
TARGETS_LIMIT = 100

_NUMBER = re.compile(r"(?<=[._])\d{1,6}(?=[._])")


def of_updates(updates: Iterable[tuple[str, int, float | None, float | None]]) -> list[dict[str, Any]]:
    """One line for each (path without its first number, rank, alpha, scale), in the order of first appearance."""
    lines: dict[tuple[Any, ...], list[int | None]] = {}
    for path, rank, alpha, scale in updates:
        layer = _NUMBER.search(path)
        starred = f"{path[: layer.start()]}*{path[layer.end() :]}" if layer else path
        number = int(layer[0]) if layer else None
        rounded = round(scale, 6) if scale is not None else None
        lines.setdefault((starred[:300], rank, alpha, rounded), []).append(number)
    rows = [
        {"path": path, "layers": _ranges([n for n in numbers if n is not None]), "modules": len(numbers),
         "rank": rank, "alpha": alpha, "scale": scale}
        for (path, rank, alpha, scale), numbers in lines.items()
    ]  # fmt: skip
    if len(rows) > LINES_LIMIT:
        rest = rows[LINES_LIMIT:]
        more = {"path": "", "layers": "", "modules": sum(line["modules"] for line in rest)}
        rows = [*rows[:LINES_LIMIT], {**more, "rank": None, "alpha": None, "scale": None}]
    return rows


def targets(paths: Iterable[str]) -> list[str]:
    """The kinds of modules among these paths: the last part of each, of a flat name what follows the last number."""
    return sorted({_target(path) for path in paths})[:TARGETS_LIMIT]


def _target(path: str) -> str:
    if "." in path:
        last = path.rpartition(".")
        return f"{last[0].rpartition('.')[2]}.{last[2]}" if last[2].isdigit() else last[2]
    flat = re.split(r"_\d+_", path)[-1]
    return flat[:100]


def _ranges(numbers: list[int]) -> str:
    """`0-3,7` for 0, 1, 2, 3 and 7."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{a}-{b}" if a != b else str(a) for a, b in parts)
