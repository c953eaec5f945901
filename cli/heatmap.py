"""Heat maps of numbers by module, as an SVG or a PNG file: a row for each block, a column for each kind of module.

Invariants
- The file's name says which: `.svg` or `.png`; any other ending is refused before anything is asked of the registry.
- The SVG is plain text without scripts, fonts or links; every text in it is escaped.
- Both are drawn from the same grid, and show the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import click

from cli import output
from cli.drawing import Grid
from cli.raster import ADVANCE, Colour, Raster

CELL_WIDTH, CELL_HEIGHT, LEFT, TOP, MARGIN = 104, 18, 140, 90, 20
LEAST_WIDTH = 480
LABEL_LIMIT = 12
_PALE, _DARK = (240, 244, 250), (20, 60, 130)


class PictureFile(click.Path):
    """A file that a heat map can be written to."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(str(super().convert(value, param, ctx)))
        if path.suffix.lower() not in (".svg", ".png"):
            self.fail(f"{value!r} ends neither with .svg nor with .png", param, ctx)
        return path


@dataclass(frozen=True, slots=True)
class HeatMap:
    """`note` is the line under the title. Colours go from pale at `low` to dark at `high`."""

    title: str
    note: str
    grid: Grid
    low: float
    high: float

    @property
    def size(self) -> tuple[int, int]:
        width = LEFT + CELL_WIDTH * max(len(self.grid.columns), 1) + MARGIN
        texts = ADVANCE * max(len(self.title), len(self.legend)) + MARGIN
        return max(width, LEAST_WIDTH, texts), TOP + CELL_HEIGHT * len(self.grid.rows) + MARGIN

    @property
    def legend(self) -> str:
        return f"{self.note}; pale is {self.low:.3g}, dark is {self.high:.3g}"

    def cells(self) -> Iterator[tuple[int, int, float, Colour, bool]]:
        """(left, top, number, colour, whether the ink on it is white) of each cell."""
        for y, row in enumerate(self.grid.rows):
            for x, column in enumerate(self.grid.columns):
                value = self.grid.cells.get((row, column))
                if value is not None:
                    share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
                    share = max(0.0, min(1.0, share))
                    red, green, blue = (round(a + (b - a) * share) for a, b in zip(_PALE, _DARK, strict=True))
                    yield LEFT + CELL_WIDTH * x, TOP + CELL_HEIGHT * y, value, (red, green, blue), share > 0.5

    def row_labels(self) -> Iterator[tuple[int, str]]:
        for y, row in enumerate(self.grid.rows):
            yield TOP + CELL_HEIGHT * y, f"layer {row}" if row.isdigit() else row

    def column_labels(self) -> Iterator[tuple[int, str]]:
        for x, column in enumerate(self.grid.columns):
            yield LEFT + CELL_WIDTH * x, column if len(column) <= LABEL_LIMIT else "…" + column[1 - LABEL_LIMIT :]


def svg(of: HeatMap) -> str:
    width, height = of.size
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="10">',
        f'<text x="10" y="20" font-size="14">{escape(of.title)}</text>',
        f'<text x="10" y="38" fill="#666">{escape(of.legend)}</text>',
    ]
    parts += [f'<text x="{x + 2}" y="{TOP - 6}">{escape(label)}</text>' for x, label in of.column_labels()]
    parts += [f'<text x="10" y="{y + 13}">{escape(label)}</text>' for y, label in of.row_labels()]
    for x, y, value, colour, white in of.cells():
        fill = "rgb({},{},{})".format(*colour)
        ink = "#fff" if white else "#222"
        parts.append(f'<rect x="{x}" y="{y}" width="{CELL_WIDTH - 1}" height="{CELL_HEIGHT - 1}" fill="{fill}"/>')
        parts.append(f'<text x="{x + 4}" y="{y + 12}" fill="{ink}">{value:.3g}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def png(of: HeatMap) -> bytes:
    canvas = Raster(*of.size)
    canvas.text(10, 10, of.title)
    canvas.text(10, 30, of.legend, (100, 100, 100))
    for x, label in of.column_labels():
        canvas.text(x + 2, TOP - 14, label)
    for y, label in of.row_labels():
        canvas.text(10, y + 4, label)
    for x, y, value, colour, white in of.cells():
        canvas.fill(x, y, CELL_WIDTH - 1, CELL_HEIGHT - 1, colour)
        canvas.text(x + 4, y + 4, f"{value:.3g}", (255, 255, 255) if white else (30, 30, 30))
    return canvas.png()


def write(path: Path, of: HeatMap) -> None:
    path.write_bytes(png(of) if path.suffix.lower() == ".png" else svg(of).encode())
    output.note(f"wrote {path}")
