"""Numbers by module as bars on a terminal, or as a heat map in an SVG file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import click

from registry.adapters.module_grid import Grid

from . import output

BAR_WIDTH = 30
ROWS_SHOWN = 48
_EIGHTHS = " ▏▎▍▌▋▊▉█"


# ------------------------------------------------------------------ bars
def bars(sizes: list[tuple[str, float]], suffix: Callable[[str, float], str], largest: float = 0.0) -> list[str]:
    """A bar for each size, the longest for the largest (or for `largest`); negative sizes are red."""
    largest = largest or max((abs(size) for _, size in sizes), default=0.0)
    width = max((len(label) for label, _ in sizes), default=0)
    drawn = [f"{label:>{width}} {_bar(size, largest)} {suffix(label, size)}" for label, size in sizes[:ROWS_SHOWN]]
    return drawn + ([f"and {len(sizes) - ROWS_SHOWN} more"] if len(sizes) > ROWS_SHOWN else [])


def _bar(value: float, largest: float) -> str:
    eighths = min(8 * BAR_WIDTH, round(8 * BAR_WIDTH * abs(value) / largest)) if largest else 0
    bar = "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")
    return output.styled(bar.ljust(BAR_WIDTH), "cyan" if value >= 0 else "red")


# ------------------------------------------------------------------ SVG
CHARACTER_WIDTH = 6
CELL_WIDTH, CELL_HEIGHT, LEFT, TOP, MARGIN = 104, 18, 140, 90, 20
LEAST_WIDTH = 480
LABEL_LIMIT = 12
_PALE, _DARK = (240, 244, 250), (20, 60, 130)


class SvgFile(click.Path):
    """A path that ends in .svg."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The typed path, which must end in `.svg`."""
        path = Path(str(super().convert(value, param, ctx)))
        if path.suffix.lower() != ".svg":
            self.fail(f"{value!r} does not end in .svg", param, ctx)
        return path


@dataclass(frozen=True, slots=True)
class HeatMap:
    """`note` is the line under the title. Colors go from pale at `low` to dark at `high`."""

    title: str
    note: str
    grid: Grid
    low: float
    high: float

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        width = LEFT + CELL_WIDTH * max(len(self.grid.columns), 1) + MARGIN
        texts = CHARACTER_WIDTH * max(len(self.title), len(self.legend)) + MARGIN
        return max(width, LEAST_WIDTH, texts), TOP + CELL_HEIGHT * len(self.grid.rows) + MARGIN

    @property
    def legend(self) -> str:
        """The line under the title: the note, and what the colors mean."""
        return f"{self.note}; pale is {self.low:.3g}, dark is {self.high:.3g}"

    def cells(self) -> Iterator[tuple[int, int, float, str, bool]]:
        """(left, top, number, color, whether the text on it is white) of each cell."""
        for y, row in enumerate(self.grid.rows):
            for x, column in enumerate(self.grid.columns):
                value = self.grid.cells.get((row, column))
                if value is not None:
                    share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
                    share = max(0.0, min(1.0, share))
                    color = ",".join(str(round(a + (b - a) * share)) for a, b in zip(_PALE, _DARK, strict=True))
                    yield LEFT + CELL_WIDTH * x, TOP + CELL_HEIGHT * y, value, f"rgb({color})", share > 0.5

    def row_labels(self) -> Iterator[tuple[int, str]]:
        """(top, label) of each row."""
        for y, row in enumerate(self.grid.rows):
            yield TOP + CELL_HEIGHT * y, f"layer {row}" if row.isdigit() else row

    def column_labels(self) -> Iterator[tuple[int, str]]:
        """(left, label) of each column; long ones lose their beginning."""
        for x, column in enumerate(self.grid.columns):
            yield LEFT + CELL_WIDTH * x, column if len(column) <= LABEL_LIMIT else "…" + column[1 - LABEL_LIMIT :]


def svg(heatmap: HeatMap) -> str:
    """Plain text without scripts, fonts or links; every text in it is escaped."""
    width, height = heatmap.size
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="10">',
        f'<text x="10" y="20" font-size="14">{escape(heatmap.title)}</text>',
        f'<text x="10" y="38" fill="#666">{escape(heatmap.legend)}</text>',
    ]
    parts += [f'<text x="{x + 2}" y="{TOP - 6}">{escape(label)}</text>' for x, label in heatmap.column_labels()]
    parts += [f'<text x="10" y="{y + 13}">{escape(label)}</text>' for y, label in heatmap.row_labels()]
    for x, y, value, color, is_white in heatmap.cells():
        parts.append(f'<rect x="{x}" y="{y}" width="{CELL_WIDTH - 1}" height="{CELL_HEIGHT - 1}" fill="{color}"/>')
        parts.append(f'<text x="{x + 4}" y="{y + 12}" fill="{"#fff" if is_white else "#222"}">{value:.3g}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def write(path: Path, heatmap: HeatMap) -> None:
    """Write the heat map as an SVG file."""
    path.write_text(svg(heatmap), encoding="utf-8")
    output.note(f"wrote {path}")
