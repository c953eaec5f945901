"""Pictures of numbers by module: bars in the terminal, and a heat map as an SVG file.

Invariants
- A module's path is split into its layer and the rest: `model.layers.3.self_attn.q_proj` is row 3, column `q_proj`.
- The SVG is plain text without scripts, fonts or links; every text in it is escaped.

Example
    >>> grid({"model.layers.0.mlp.up_proj": 0.5}).columns
    ('up_proj',)
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import click

from cli import output

BAR_WIDTH = 30
LAYERS_SHOWN = 48
CELL_WIDTH, CELL_HEIGHT, LEFT, TOP = 64, 18, 70, 90
_LAYER = re.compile(r"\.(?:layers|h|blocks|layer)\.(\d{1,6})\.")
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class Grid:
    """`cells` by (row, column). Rows are layers in their order, then modules that are in none."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str], float]


def grid(values: Mapping[str, float | None]) -> Grid:
    cells = {(_row(path), path.rpartition(".")[2]): value for path, value in values.items() if value is not None}
    rows = sorted({row for row, _ in cells}, key=lambda row: (not row, int(row or 0)))
    columns = tuple(sorted({column for _, column in cells}))
    return Grid(tuple(rows), columns, cells)


def _row(path: str) -> str:
    found = _LAYER.search(path)
    return found[1] if found else ""


# ------------------------------------------------------------------ terminal
def layer_bars(norms: Mapping[str, float | None]) -> list[str]:
    """A bar for each layer: the root of the summed squares of its modules' norms, the longest bar for the largest."""
    squares: dict[str, float] = defaultdict(float)
    for path, value in norms.items():
        squares[_row(path)] += (value or 0.0) ** 2
    sizes = {row: math.sqrt(square) for row, square in squares.items()}
    largest = max(sizes.values(), default=0.0)
    rows = sorted(sizes, key=lambda row: (not row, int(row or 0)))
    lines = [f"{row or 'other':>5} {_bar(sizes[row], largest)} {sizes[row]:.3g}" for row in rows[:LAYERS_SHOWN]]
    return lines + ([f"  and {len(rows) - LAYERS_SHOWN} more"] if len(rows) > LAYERS_SHOWN else [])


def _bar(value: float, largest: float) -> str:
    eighths = round(8 * BAR_WIDTH * value / largest) if largest else 0
    bar = "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")
    return click.style(bar.ljust(BAR_WIDTH), fg="cyan")


# ------------------------------------------------------------------ file
def heat_map(title: str, values: Mapping[str, float | None], *, low: float, high: float) -> str:
    """An SVG: a cell for each module, from pale at `low` to dark at `high`, with its number."""
    shape = grid(values)
    width = LEFT + CELL_WIDTH * max(len(shape.columns), 1) + 20
    height = TOP + CELL_HEIGHT * len(shape.rows) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{max(width, 480)}" height="{height}" '
        'font-family="sans-serif" font-size="10">',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
        f'<text x="10" y="38" fill="#666">pale is {low:.3g}, dark is {high:.3g}; one row for each layer</text>',
    ]
    for x, column in enumerate(shape.columns):
        parts.append(f'<text x="{LEFT + CELL_WIDTH * x + 2}" y="{TOP - 6}">{escape(column[:14])}</text>')
    for y, row in enumerate(shape.rows):
        label = f"layer {row}" if row else "other"
        parts.append(f'<text x="10" y="{TOP + CELL_HEIGHT * y + 13}">{escape(label)}</text>')
        for x, column in enumerate(shape.columns):
            value = shape.cells.get((row, column))
            if value is not None:
                parts += _cell(LEFT + CELL_WIDTH * x, TOP + CELL_HEIGHT * y, value, low, high)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _cell(x: int, y: int, value: float, low: float, high: float) -> list[str]:
    share = max(0.0, min(1.0, (value - low) / (high - low))) if high > low else 0.5
    red, green, blue = (round(a + (b - a) * share) for a, b in ((240, 20), (244, 60), (250, 130)))
    ink = "#fff" if share > 0.5 else "#222"
    return [
        f'<rect x="{x}" y="{y}" width="{CELL_WIDTH - 1}" height="{CELL_HEIGHT - 1}" fill="rgb({red},{green},{blue})"/>',
        f'<text x="{x + 4}" y="{y + 12}" fill="{ink}">{value:.3g}</text>',
    ]


def write(path: Path, svg: str) -> None:
    path.write_text(svg, "utf-8")
    output.note(f"wrote {path}")
