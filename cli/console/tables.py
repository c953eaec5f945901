"""`Table`: prints every list of rows, as table, wide, JSON, YAML, CSV or names; commands only name columns.

- A table shows times as `3 h ago` and is fitted to the terminal: a last column of free text is wrapped, then long
  cells are cut, then columns left out from the right. Times, numbers and ids are never cut. `wide` and files get
  every column, whole, with exact times.
- CSV has exact values, such as bytes and ISO times. A text that a spreadsheet would read as a formula begins with `'`.
"""

import csv
import io
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

import click

from registry.durations import relative, to_utc

from . import output

Row = TypeVar("Row")
Function = TypeVar("Function", bound=Callable[..., Any])

LEAST_WIDTH = 14
"""Cells are not cut below this width; then columns are left out."""
FLOW_WIDTH = 24
"""A column that flows is not wrapped below this width; then it stands under its row."""
_GAP = "  "
_FORMULA_BEGINNINGS = ("=", "+", "-", "@", "\t")


@dataclass(frozen=True)  # no slots: in Python 3.11 they break `Column[Row](…)` of a frozen generic
class Column(Generic[Row]):
    """`value`: the exact value of a row, for CSV and sorting. `text`: its cell for people, if it is not the value.

    `wide`: shown by `-o wide` and `--columns` only. `flows`: the last column, which is wrapped and never cut. `whole`:
    never cut, such as an id that the next command needs; times and numbers never are.
    """

    name: str
    value: Callable[[Row], Any]
    text: Callable[[Row], str] | None = None
    wide: bool = False
    flows: bool = False
    whole: bool = False

    def cell(self, row: Row, *, exact: bool) -> str:
        """The cell for people; a dash without a value."""
        if self.text is not None:
            return self.text(row) or "-"
        value = self.value(row)
        if isinstance(value, datetime) and not exact:
            return relative(value)
        return _plain(value, output.moment) or "-"

    def exact(self, row: Row) -> str:
        """The value for CSV and names."""
        value = self.value(row)
        text = output.one_line(_plain(value, lambda at: to_utc(at).isoformat()))
        return f"'{text}" if isinstance(value, str) and text.startswith(_FORMULA_BEGINNINGS) else text

    def is_number(self, row: Row) -> bool:
        """Whether the value is a number, which is aligned at the right, and not that of a version (`@3`)."""
        value = self.value(row)
        if value is None or not isinstance(value, int | float) or isinstance(value, bool):
            return value is None
        return self.text is None or not output.unstyled(self.text(row)).startswith("@")

    def least_width(self, rows: Iterable[Row], width: int) -> int:
        """How narrow the column may become on a terminal, if its widest cell has this width."""
        if self.whole or any(isinstance(self.value(row), int | float | datetime) for row in rows):
            return width
        return min(width, FLOW_WIDTH if self.flows else LEAST_WIDTH)

    def sort_key(self, row: Row) -> Any:
        """Orders rows by value."""
        value = self.value(row)
        return value if isinstance(value, int | float | datetime) else _plain(value, output.moment)


def _plain(value: Any, time: Callable[[datetime], str]) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return time(value)
    if isinstance(value, Mapping):
        return ",".join(f"{key}={item}" if item not in ("", None) else str(key) for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(map(str, value))
    return str(value)


@dataclass(frozen=True)
class Table(Generic[Row]):
    """Columns, the most important first. `empty`: the text without rows. `name`: of a row, for `-o name`."""

    columns: tuple[Column[Row], ...]
    empty: str = ""
    name: Callable[[Row], str] | None = None

    def print(
        self, rows: Iterable[Row], *, document: Any = None, key: str = "items", total: int | None = None,
        empty: str = "", details: Callable[[Row], Sequence[str]] | None = None,
        above: Callable[[], None] | None = None, below: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Print the rows in the format that the command was called with.

        `document`: the JSON, or the fields beside `key`, which holds the rows. `total`: how many rows match.
        `details`: lines under a row; `above` and `below` print more, both for people only.
        """
        items = self._sort_rows(list(rows))
        if output.is_document():
            has_rows = document is None or isinstance(document, dict)
            count = {} if total is None else {"total": total}
            output.print_document({key: items, **count, **(document or {})} if has_rows else document)
        elif (output_format := output.output_format()) == "csv":
            self._print_csv(items, header=True)
        elif output_format == "name":
            for row in items:
                output.line(self.name(row) if self.name is not None else self.columns[0].exact(row))
        else:
            with output.page_output():
                if above is not None:
                    above()
                self._print_text(items, empty or self.empty, details)
                if below is not None:
                    below()
        if total is not None and total > len(items):
            output.note(f"{len(items)} of {total}; --limit shows more")

    def append(self, row: Row) -> None:
        """Print one more row under those that were printed."""
        if output.is_document():
            output.print_document(row)
        elif output.output_format() == "csv":
            self._print_csv([row], header=False)
        elif output.output_format() == "name":
            output.line(self.name(row) if self.name is not None else self.columns[0].exact(row))
        else:
            output.line(_GAP.join(column.cell(row, exact=_is_wide()) for column in self._choose_columns()))

    def lines(
        self, rows: Sequence[Row], *, width: int | None, details: Callable[[Row], Sequence[str]] | None = None
    ) -> list[str]:
        """Heading and rows in aligned columns of at most `width` characters together."""
        columns = self._choose_columns()
        cells = [[column.cell(row, exact=_is_wide()) for column in columns] for row in rows]
        widths = [
            max(len(column.name), *(output.width(line[n]) for line in cells), 0) for n, column in enumerate(columns)
        ]
        least = [column.least_width(rows, size) for column, size in zip(columns, widths, strict=True)]
        fitting = widths if width is None else _fit(widths, least, width, flows=columns[-1].flows)
        flows = columns[-1].flows and width is not None
        is_beside = len(fitting) == len(columns)
        indent = sum(fitting[:-1]) + len(_GAP) * (len(fitting) - 1) if is_beside else len(_GAP)
        numbers = [all(column.is_number(row) for row in rows) for column in columns]

        def align(texts: Sequence[str]) -> str:
            padded = [_align(*parts) for parts in zip(texts, fitting, numbers, strict=False)]
            return _GAP.join(padded).rstrip()

        printed = [output.faint(align([column.name.upper() for column in columns]))]
        for row, texts in zip(rows, cells, strict=True):
            flow = output.wrap(texts[-1], (width or 0) - indent) if flows else []
            printed.append(align([*texts[:-1], *flow[:1]] if flows and is_beside else texts))
            printed += [" " * indent + text for text in flow[is_beside:]]
            printed += details(row) if details is not None else ()
        if hidden := ", ".join(column.name for column in columns[len(fitting) :] if not (flows and column.flows)):
            printed.append(output.faint(f"not shown: {hidden} (-o wide)"))
        return printed

    def _print_text(
        self, rows: Sequence[Row], empty: str, details: Callable[[Row], Sequence[str]] | None
    ) -> None:  # fmt: skip
        if not rows:
            if empty:
                output.line(empty)
            return
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() and not _is_wide() else None
        for line in self.lines(rows, width=width, details=details):
            output.line(line)

    def _print_csv(self, rows: Sequence[Row], *, header: bool) -> None:
        columns = self._choose_columns()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([[column.name for column in columns]] if header else [])
        writer.writerows([column.exact(row) for column in columns] for row in rows)
        click.echo(text.getvalue(), nl=False)

    def _choose_columns(self) -> tuple[Column[Row], ...]:
        names = output.setting("columns")
        if names:
            return tuple(self.column(name.strip()) for name in names.split(","))
        every = output.output_format() in ("wide", "csv")
        return tuple(column for column in self.columns if every or not column.wide)

    def _sort_rows(self, rows: list[Row]) -> list[Row]:
        name = output.setting("sort")
        if not name:
            return rows
        column = self.column(name.removeprefix("-"))
        present = [row for row in rows if column.value(row) is not None]
        missing = [row for row in rows if column.value(row) is None]
        return sorted(present, key=column.sort_key, reverse=name.startswith("-")) + missing

    def column(self, name: str) -> Column[Row]:
        """The column of this name. A usage error lists those that there are."""
        for column in self.columns:
            if column.name == name:
                return column
        raise click.UsageError(f"no column {name!r}; there are: {', '.join(column.name for column in self.columns)}")


def prints(table: Table[Any]) -> Callable[[Function], Function]:
    """Declare that a command prints the rows of this table. It then has --columns and --sort (`options.Command`)."""

    def declare(function: Function) -> Function:
        function.table = table  # type: ignore[attr-defined]
        return function

    return declare


def refuse_row_options(option: str) -> None:
    """A usage error for a format of rows, if the command prints rows only with this option."""
    of_rows = [name for name in output.ROW_FORMATS[1:] if name not in output.DOCUMENTS]
    if output.output_format() in of_rows or output.setting("columns") or output.setting("sort"):
        raise click.UsageError(f"-o {'|'.join(of_rows)}, --columns and --sort need {option}")


def _is_wide() -> bool:
    return output.output_format() == "wide"


def _align(text: str, width: int, is_number: bool) -> str:
    gap = width - output.width(text)
    if gap < 0:
        return output.cut(text, width)
    return " " * gap + text if is_number else text + " " * gap


def _fit(widths: Sequence[int], least: Sequence[int], width: int, *, flows: bool) -> list[int]:
    """The widths of those columns that are shown beside each other.

    A last column that flows is narrowed first, then the widest; columns go once none can be narrowed more.
    """
    fitting = list(widths)
    while (excess := sum(fitting) + len(_GAP) * (len(fitting) - 1) - width) > 0:
        narrowable = [n for n, size in enumerate(fitting) if size > least[n]]
        if narrowable:
            widest = max(narrowable, key=lambda n: (flows and n == len(widths) - 1, fitting[n]))
            fitting[widest] = max(least[widest], fitting[widest] - excess)
        elif len(fitting) == 1:
            break
        else:
            fitting.pop()
            fitting[:] = widths[: len(fitting)]
    return fitting
