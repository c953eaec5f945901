"""Numbers by module as a grid of blocks and kinds of module, for heat maps and bars.

A path is split into its block and the rest: `model.layers.3.self_attn.q_proj` is row `3`, column `q_proj`;
`lora_unet_down_blocks_0_attentions_1_…_attn1_to_k` is row `down 0`, column `attn1_to_k`. Rows are in the model's order.

Example
    >>> grid({"model.layers.0.mlp.up_proj": 0.5}).columns
    ('up_proj',)
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

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

Join = Callable[[list[float]], float]


class GridCell(NamedTuple):
    """The cell of a module. Cells sort in the order of the model; `row` and `column` are the labels."""

    rank: int
    group: str
    number: int
    row: str
    column: str


def cell_of(path: str) -> GridCell:
    """The row and the column of a module, by its path."""
    text = _TEXT.match(path)
    match = _LAYER.search(path) or _PLAIN_BLOCK.search(path)
    if text:
        group = f"text {text[1][-1]}" if text[1][-1].isdigit() else "text"
        number = int(match[1]) if match else 0
        return GridCell(len(_ORDER), group, number, f"{group} {number}", _column(path))
    block = _BLOCK.search(path)
    if block:
        group, number = block[1].replace("_", " "), int(block[2] or 0)
        row = f"{group} {number}" if block[2] else group
        return GridCell(_ORDER.index(group), group, number, row, _AFTER_NUMBERS.sub("", path))
    if match:
        return GridCell(0, "", int(match[1]), match[1], _column(path))
    return GridCell(len(_ORDER) + 1, OTHER, 0, OTHER, _column(path))


def _column(path: str) -> str:
    return path.rpartition(".")[2] if "." in path else _AFTER_NUMBERS.sub("", path)


def joint_norm(norms: Iterable[float]) -> float:
    """The norm of several updates side by side."""
    return math.sqrt(sum(norm * norm for norm in norms))


def mean(numbers: list[float]) -> float:
    """The arithmetic mean."""
    return sum(numbers) / len(numbers)


@dataclass(frozen=True, slots=True)
class Grid:
    """Numbers by (row, column)."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str], float]


def grid(values: Mapping[str, float | None], join: Join = joint_norm) -> Grid:
    """A row for each block, a column for each kind of module. `join` makes one number of those that share a cell."""
    numbers: dict[tuple[str, str], list[float]] = defaultdict(list)
    first_cells: dict[str, GridCell] = {}
    for path, value in values.items():
        if value is not None:
            cell = cell_of(path)
            first_cells.setdefault(cell.row, cell)
            numbers[cell.row, cell.column].append(value)
    rows = tuple(sorted(first_cells, key=lambda row: first_cells[row][:3]))
    columns = tuple(sorted({column for _, column in numbers}))
    return Grid(rows, columns, {cell: join(shared) for cell, shared in numbers.items()})


def totals(grid: Grid, *, by: str, join: Join = joint_norm) -> list[tuple[str, float]]:
    """The label of each row or each column of the grid (`by`) and its joined cells."""
    index = 0 if by == "row" else 1
    numbers: dict[str, list[float]] = defaultdict(list)
    for cell, value in grid.cells.items():
        numbers[cell[index]].append(value)
    return [(label, join(numbers[label])) for label in (grid.rows if by == "row" else grid.columns)]
