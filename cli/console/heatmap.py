"""Numbers by module as bars on a terminal, or as a heat map in an SVG file."""

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

    def svg(self) -> Iterator[str]:
        """Lines of plain text without scripts, fonts or links; every text in it is escaped."""
        rows, columns = self.grid.rows, self.grid.columns
        legend = f"{self.note}; pale is {self.low:.3g}, dark is {self.high:.3g}"
        texts = CHARACTER_WIDTH * max(len(self.title), len(legend)) + MARGIN
        width = max(LEFT + CELL_WIDTH * max(len(columns), 1) + MARGIN, LEAST_WIDTH, texts)
        size = f'width="{width}" height="{TOP + CELL_HEIGHT * len(rows) + MARGIN}"'
        yield f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="10">'
        yield f'<text x="10" y="20" font-size="14">{escape(self.title)}</text>'
        yield f'<text x="10" y="38" fill="#666">{escape(legend)}</text>'
        for x, column in enumerate(columns):
            label = column if len(column) <= LABEL_LIMIT else "…" + column[1 - LABEL_LIMIT :]
            yield f'<text x="{LEFT + CELL_WIDTH * x + 2}" y="{TOP - 6}">{escape(label)}</text>'
        for n, row in enumerate(rows):
            y = TOP + CELL_HEIGHT * n
            yield f'<text x="10" y="{y + 13}">{escape(f"layer {row}" if row.isdigit() else row)}</text>'
            for x, column in enumerate(columns):
                if (value := self.grid.cells.get((row, column))) is not None:
                    yield from self._cell(LEFT + CELL_WIDTH * x, y, value)
        yield "</svg>"

    def _cell(self, x: int, y: int, value: float) -> Iterator[str]:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        share = max(0.0, min(1.0, share))
        color = ",".join(str(round(a + (b - a) * share)) for a, b in zip(_PALE, _DARK, strict=True))
        yield f'<rect x="{x}" y="{y}" width="{CELL_WIDTH - 1}" height="{CELL_HEIGHT - 1}" fill="rgb({color})"/>'
        yield f'<text x="{x + 4}" y="{y + 12}" fill="{"#fff" if share > 0.5 else "#222"}">{value:.3g}</text>'


def write(path: Path, heatmap: HeatMap) -> None:
    """Write the heat map as an SVG file."""
    path.write_text("\n".join([*heatmap.svg(), ""]), encoding="utf-8")
    output.note(f"wrote {path}")
