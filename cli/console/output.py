"""Prints results and errors: text or JSON, one exit code for each class of error.

    0 done · 1 bug · 2 bad input or usage · 3 not signed in or denied · 4 not found · 5 conflict
    6 refused by a gate or verdict · 70 corrupt · 75 try again later · 130 interrupted

- With `--json`, standard output is one JSON document and nothing else; an error is a JSON document on standard error.
- Every text goes through `line`, `facts`, `table` or `answer`, which escape what could steer a terminal. Only styles
  that this module made become terminal codes: they carry a mark that no text from elsewhere can know.

Example
    >>> EXIT_CODES[errors.NotFound]
    4
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from registry import errors
from registry.durations import to_utc
from registry.errors import RegistryError
from registry.findings import Finding

from .. import main

if TYPE_CHECKING:
    from registry.client.answers import Page
    from registry.client.transfer.bulk import Result

EXIT_CODES: dict[type[RegistryError], int] = {
    errors.RegistryError: 1,
    errors.Invalid: 2,
    errors.TooLarge: 2,
    errors.Unauthenticated: 3,
    errors.Denied: 3,
    errors.NotFound: 4,
    errors.Conflict: 5,
    errors.Refused: 6,
    errors.Corrupt: 70,
    errors.Unavailable: 75,
}
REFUSED = EXIT_CODES[errors.Refused]
CORRUPT = EXIT_CODES[errors.Corrupt]
TRY_LATER = EXIT_CODES[errors.Unavailable]
INTERRUPTED = 130
FINDINGS_SHOWN = 12

_JSON = "cli.as_json"
_OUTCOME_COLORS = {"pass": "green", "warn": "yellow", "fail": "red", "unknown": "magenta"}
_STYLES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "magenta": 35, "cyan": 36}
_MARK = f"\x1b{os.urandom(8).hex()}"
_STYLED = re.compile(f"{_MARK}([0-9]+)m")


# ------------------------------------------------------------------ what all commands have
def complete(command: click.Command) -> click.Command:
    """Add `--json` and the check of arguments to the command, or to every command of the group."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            complete(inner)
    elif all(param.name != "as_json" for param in command.params):
        option = click.Option(["--json", "as_json"], is_flag=True, expose_value=False, callback=_set_json)
        option.help = "Print JSON."
        command.params.append(option)
        command.callback = _with_utf8_arguments(command)
    return command


def _with_utf8_arguments(command: click.Command) -> Callable[..., Any]:
    """The command's function, after a check that every text can be sent. Only paths may have other bytes."""
    labels = {param.name: param.human_readable_name for param in command.params}
    function = command.callback

    def run(**values: Any) -> Any:
        for name, value in values.items():
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and any("\ud800" <= c <= "\udfff" for c in text):
                    raise errors.Invalid("REQUEST_INVALID", f"{labels[name]}: {one_line(text)!r} is not valid UTF-8")
        return function(**values) if function is not None else None

    return run


def _set_json(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    ctx.meta[_JSON] = value


def as_json() -> bool:
    """Whether the command was called with `--json`."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(_JSON))


def document(value: Any) -> Any:
    """Models and findings, and lists and dictionaries of them, as plain JSON values."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Finding):
        return value.to_dict()
    if isinstance(value, dict):
        return {key: document(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [document(item) for item in value]
    return value


def json_text(value: Any) -> str:
    """Indented JSON, in which characters that do not print are escaped."""
    text = json.dumps(document(value), indent=2, ensure_ascii=False)
    if text.isascii():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def answer(value: Any, text: Callable[[], None]) -> None:
    """Print the result of a command: `value` as JSON if that was asked for, else what `text` prints."""
    if as_json():
        click.echo(json_text(value))
    else:
        text()


def note(message: str) -> None:
    """Print a remark beside the result, on standard error; nothing with `--json`."""
    if not as_json():
        line(faint(message), err=True)


def confirm(question: str, yes: bool) -> None:
    """Ask on standard error, unless `yes`. `Invalid` (REQUEST_INVALID) for any other answer."""
    try:
        answer = "yes" if yes or click.confirm(question, err=True) else "no"
    except click.Abort:
        if sys.stdin.isatty():  # Ctrl-C; else standard input has ended
            raise
        answer = "missing"
    if answer != "yes":
        raise errors.Invalid(
            "REQUEST_INVALID", f"not done: the answer is {answer}", next_step="answer yes, or pass --yes"
        )


# ------------------------------------------------------------------ errors
def print_error(error: Exception, ctx: click.Context) -> int | None:
    """Print the error and return its exit code; None for a bug, which keeps its traceback."""
    known_error = _registry_error(error)
    if known_error is None:
        return None
    if ctx.meta.get(_JSON):
        click.echo(json_text(known_error.to_problem()), err=True)
        return EXIT_CODES[type(known_error)]
    line(styled("Error: ", "red", "bold") + known_error.detail, err=True)
    findings = [finding for finding in known_error.findings if finding.message not in known_error.detail]
    for finding in findings[:FINDINGS_SHOWN]:
        location = f"{finding.location}: " if finding.location and finding.location not in finding.message else ""
        line(f"  - {location}{finding.message}", err=True)
    if len(findings) > FINDINGS_SHOWN:
        line(f"  - and {len(findings) - FINDINGS_SHOWN} more", err=True)
    if known_error.next_step:
        line(strong("Next: ") + known_error.next_step, err=True)
    return EXIT_CODES[type(known_error)]


def print_interrupted(ctx: click.Context) -> int:
    """Print that Ctrl-C ended the command, and return its exit code."""
    problem = {"type": "about:blank", "title": "Interrupted", "code": "INTERRUPTED", "detail": "interrupted"}
    click.echo(json_text(problem) if ctx.meta.get(_JSON) else "Interrupted.", err=True)
    return INTERRUPTED


def exit_code_of(error: Exception) -> int:
    """The exit code that this error ends a command with; 1 for a bug."""
    registry_error = _registry_error(error)
    return EXIT_CODES[type(registry_error)] if registry_error is not None else 1


def exit_with(code: int) -> None:
    """End the command with this exit code."""
    click.get_current_context().exit(code)


def _registry_error(error: Exception) -> RegistryError | None:
    if isinstance(error, RegistryError):
        return error
    if isinstance(error, ValueError) and hasattr(error, "title"):  # of pydantic
        return _invalid_request(error)
    if isinstance(error, OSError) and error.errno not in (None, errno.EPIPE):
        file = f"{error.filename}: " if error.filename else ""
        message = f"{file}{error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE):
            return errors.Unavailable("TRY_LATER", message)
        return errors.Invalid("FOLDER_INVALID", message)
    return None


def _invalid_request(error: Any) -> RegistryError | None:
    """Arguments that no request can hold are bad input; an answer that cannot be parsed is a bug."""
    requests = main.load("registry.api.models", "Request").__subclasses__()  # loaded if one has refused something
    if error.title not in {schema.__name__ for schema in requests}:
        return None
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    return errors.Invalid("REQUEST_INVALID", f"{'.'.join(map(str, first['loc']))}: {message}")


# ------------------------------------------------------------------ pages
def pages(fetch: Callable[[str], Page]) -> Iterator[Page]:
    """Every page of a list or run: `fetch` takes a cursor, at first an empty one."""
    cursor = ""
    while True:
        page = fetch(cursor)
        yield page
        cursor = page.next_cursor
        if not cursor:
            return


# ------------------------------------------------------------------ text
def styled(text: str, *styles: str) -> str:
    """`text` in colors or bold or dim, for `line`, `facts` and `table`."""
    return "".join(f"{_MARK}{_STYLES[style]}m" for style in styles) + f"{text}{_MARK}0m" if text and styles else text


def strong(text: str) -> str:
    """`text` in bold."""
    return styled(text, "bold")


def faint(text: str) -> str:
    """`text` in a dim color."""
    return styled(text, "dim")


def outcome(text: str) -> str:
    """A verdict's outcome in its color; a dash if there is none."""
    return styled(text, *([_OUTCOME_COLORS[text]] if text in _OUTCOME_COLORS else [])) if text else faint("-")


def unstyled(text: str) -> str:
    """`text` without colors and weights."""
    return _STYLED.sub("", text)


def one_line(text: str) -> str:
    """`text` with escapes for everything that could steer a terminal or look like another line."""
    text = text.replace("\n", " ⏎ ")
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def line(text: str = "", *, err: bool = False) -> None:
    """Print one line. Styles of `styled` become terminal codes; everything else is escaped by `one_line`."""
    parts = _STYLED.split(text)  # text, code, text, code, …
    click.echo("".join(f"\x1b[{part}m" if n % 2 else one_line(part) for n, part in enumerate(parts)), err=err)


def _width(text: str) -> int:
    return len(one_line(unstyled(text)))


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str = "", right: frozenset[str] = frozenset()
) -> None:
    """Aligned columns, as wide as they need to be; the text `empty` without rows. `right`: columns of numbers."""
    lines = [list(row) for row in rows]
    if not lines and empty:
        line(empty)
        return
    widths = [max(map(_width, cells)) for cells in zip(columns, *lines, strict=True)]

    def aligned(cells: Sequence[str]) -> str:
        padded = []
        for name, cell, width in zip(columns, cells, widths, strict=True):
            gap = " " * (width - _width(cell))
            padded.append(gap + cell if name in right else cell + gap)
        return "  ".join(padded).rstrip()

    line(faint(aligned([column.upper() for column in columns])))
    for cells in lines:
        line(aligned(cells))


def facts(rows: Iterable[tuple[str, str | Sequence[str]]], *, indent: str = "  ") -> None:
    """Label and value, one pair a line; empty values are left out. A sequence is a value of several lines."""
    shown = [(label, [value] if isinstance(value, str) else value) for label, value in rows if value]
    width = max((len(label) for label, _ in shown), default=0)
    for label, (first, *rest) in shown:
        line(indent + faint(label.ljust(width)) + "  " + first)
        for text in rest:
            line(indent + " " * (width + 2) + text)


def size(count: int) -> str:
    """Bytes for people, in powers of ten as disks and networks count: `4.7 MB`."""
    number = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def amount(count: int) -> str:
    """A large number for people: `134.5 M`."""
    number = float(count)
    for unit in ("", " k", " M"):
        if number < 999.5:
            return f"{number:.0f}" if not unit else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f} G"


def moment(at: datetime | None) -> str:
    """A time in UTC to the minute. The JSON has the exact time."""
    return to_utc(at).strftime("%Y-%m-%d %H:%M") + " UTC" if at else ""


def plural(count: int, noun: str) -> str:
    """The count and the noun, with an s unless the count is 1."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def some(items: Sequence[str], limit: int) -> str:
    """The first items, and how many more there are."""
    more = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {more} more" if more > 0 else "")


def on_terminal() -> bool:
    """Whether a person watches: only then is progress shown."""
    return sys.stderr.isatty() and not as_json()


# ------------------------------------------------------------------ progress
DRAW_EVERY_SECONDS = 0.1
_CLEAR = "\r\x1b[2K"


class ProgressLine:
    """One line on standard error while bytes move; nothing where no one watches. Threads may share it."""

    def __init__(self, label: str) -> None:
        self.total_bytes = 0
        self._label, self._watched = label, on_terminal()
        self._moved_bytes, self._started_at, self._drawn_at = 0, 0.0, 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()

    def start(self, total_bytes: int) -> None:
        """Set the total. A later call raises it."""
        self.total_bytes = total_bytes
        self._started_at = self._started_at or time.monotonic()

    def advance(self, count: int) -> None:
        """Count bytes that have moved, and draw the line if that is due."""
        if self._watched:
            with self._lock:
                self._moved_bytes += count
                self._draw()

    def above(self, show: Callable[[], None]) -> None:
        """Print something; the line moves below it."""
        with self._lock:
            self._clear()
            show()

    def _draw(self) -> None:
        now = time.monotonic()
        if now - self._drawn_at >= DRAW_EVERY_SECONDS:
            self._drawn_at = now
            rate = size(round(self._moved_bytes / max(now - self._started_at, 1e-3)))
            moved = f"{size(self._moved_bytes)} of {size(self.total_bytes)}"
            click.echo(f"{_CLEAR}{one_line(self._label)}  {moved}  {rate}/s", nl=False, err=True)

    def _clear(self) -> None:
        if self._drawn_at:
            click.echo(_CLEAR, nl=False, err=True)


# ------------------------------------------------------------------ many adapters
def reporter(progress: ProgressLine, show: Callable[[Result[Any]], None]) -> Callable[[Result[Any]], None]:
    """Print each result above the progress when it is there; with --json nothing, because one document has them all."""
    is_json = as_json()  # other threads have no click context

    def report(result: Result[Any]) -> None:
        if is_json:
            return
        if result.error is None:
            progress.above(lambda: show(result))
        else:
            word = "gave up" if isinstance(result.error, errors.Unavailable) else "refused"
            refusal = f"{result.name}  {styled(word, 'red')}  {result.error.detail}"
            progress.above(lambda: line(refusal))

    return report


def finish(results: Sequence[Result[Any]], key: str, summary: str, exit_code: int) -> None:
    """Print the results or the summary, and end with the exit code of the first error, else with this one."""
    items = [
        {"folder": str(result.folder), "name": result.name, key: result.answer,
         "error": result.error.to_problem() if result.error else None}
        for result in results
    ]  # fmt: skip
    answer({"items": items}, lambda: line(summary))
    failures = [result.error for result in results if result.error]
    exit_with(exit_code_of(failures[0]) if failures else exit_code)
