"""Numbers by module for a terminal: where a module stands in its model, and bars.

Invariants
- A path is split into the block that it is in and the rest: `model.layers.3.self_attn.q_proj` is row `3`, column
  `q_proj`; `lora_unet_down_blocks_0_attentions_1_…_attn1_to_k` is row `down 0`, column `attn1_to_k`.
- Rows are in the model's order. Modules that share a cell are joined: norms as the root of the summed squares, other
  numbers as their mean.

Example
    >>> grid({"model.layers.0.mlp.up_proj": 0.5}).columns
    ('up_proj',)
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import click

BAR_WIDTH = 30
ROWS_SHOWN = 48
OTHER = "other"
_NUMBER = r"[._](\d{1,6})"
_LAYER = re.compile(rf"(?:[._]|\A)(?:layers|h|blk|layer|resblocks){_NUMBER}(?=[._])")
_BLOCK = re.compile(
    r"(?:[._]|\A)(down|mid|middle|up|input|output|double|joint|single_transformer|single|transformer)"
    rf"_blocks?(?:{_NUMBER})?(?=[._])"
)
_PLAIN_BLOCK = re.compile(rf"(?:[._]|\A)blocks{_NUMBER}(?=[._])")
_TEXT = re.compile(r"\A(?:lora_)?(text_encoder_?\d?|te\d?)[._]")
_ORDER = ("", "input", "down", "mid", "middle", "up", "output", "joint", "double", "transformer", "single",
          "single transformer")  # fmt: skip
_AFTER_NUMBERS = re.compile(r".*[._]\d+[._](?=\D)")
_EIGHTHS = " ▏▎▍▌▋▊▉█"

Join = Callable[[list[float]], float]


class HeatmapCell(NamedTuple):
    """Where a module stands. Sorts in the order of the model; `row` and `column` are what people read."""

    rank: int
    group: str
    number: int
    row: str
    column: str


def place(path: str) -> HeatmapCell:
    text = _TEXT.match(path)
    match = _LAYER.search(path) or _PLAIN_BLOCK.search(path)
    if text:
        group = f"text {text[1][-1]}" if text[1][-1].isdigit() else "text"
        number = int(match[1]) if match else 0
        return HeatmapCell(len(_ORDER), group, number, f"{group} {number}", _column(path))
    block = _BLOCK.search(path)
    if block:
        group, number = block[1].replace("_", " "), int(block[2] or 0)
        row = f"{group} {number}" if block[2] else group
        return HeatmapCell(_ORDER.index(group), group, number, row, _AFTER_NUMBERS.sub("", path))
    if match:
        return HeatmapCell(0, "", int(match[1]), match[1], _column(path))
    return HeatmapCell(len(_ORDER) + 1, OTHER, 0, OTHER, _column(path))


def _column(path: str) -> str:
    return path.rpartition(".")[2] if "." in path else _AFTER_NUMBERS.sub("", path)


# ------------------------------------------------------------------ joining
def together(sizes: Iterable[float]) -> float:
    """The norm of several updates side by side."""
    return math.sqrt(sum(size * size for size in sizes))


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


@dataclass(frozen=True, slots=True)
class Grid:
    """`cells` by (row, column)."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str], float]


def grid(values: Mapping[str, float | None], join: Join = together) -> Grid:
    """A row for each block, a column for each kind of module; numbers that are not known are left out."""
    gathered: dict[tuple[str, str], list[float]] = defaultdict(list)
    places: dict[str, HeatmapCell] = {}
    for path, value in values.items():
        if value is not None:
            at = place(path)
            places.setdefault(at.row, at)
            gathered[at.row, at.column].append(value)
    rows = tuple(sorted(places, key=lambda row: places[row][:3]))
    columns = tuple(sorted({column for _, column in gathered}))
    return Grid(rows, columns, {cell: join(numbers) for cell, numbers in gathered.items()})


# ------------------------------------------------------------------ bars
class Line(NamedTuple):
    """One bar: what it is of, how long it is, and what stands behind it."""

    label: str
    size: float
    told: str


def lines(grid: Grid, describe: Callable[[str, float], str], *, by: str, join: Join = together) -> list[Line]:
    """A line for each row or each column of the grid (`by`), its cells joined."""
    at = 0 if by == "row" else 1
    gathered: dict[str, list[float]] = defaultdict(list)
    for cell, value in grid.cells.items():
        gathered[cell[at]].append(value)
    sizes = [(label, join(gathered[label])) for label in (grid.rows if by == "row" else grid.columns)]
    return [Line(label, size, describe(label, size)) for label, size in sizes]


def bars(shown: list[Line], largest: float = 0.0) -> list[str]:
    """A bar for each line, the longest for the largest (or for `largest`); negative sizes are red."""
    largest = largest or max((abs(line.size) for line in shown), default=0.0)
    width = max((len(line.label) for line in shown), default=0)
    drawn = [f"{line.label:>{width}} {_bar(line.size, largest)} {line.told}" for line in shown[:ROWS_SHOWN]]
    return drawn + ([f"and {len(shown) - ROWS_SHOWN} more"] if len(shown) > ROWS_SHOWN else [])


def _bar(value: float, largest: float) -> str:
    eighths = min(8 * BAR_WIDTH, round(8 * BAR_WIDTH * abs(value) / largest)) if largest else 0
    bar = "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")
    return click.style(bar.ljust(BAR_WIDTH), fg="cyan" if value >= 0 else "red")
