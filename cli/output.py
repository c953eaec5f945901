"""What a person or a script sees: tables or JSON, and every error as one sentence with an exit code.

    0 done · 1 bug · 2 bad input or usage · 3 not signed in or denied · 4 not found · 5 conflict
    6 refused by a gate or verdict · 70 corrupt · 75 try again later

Invariants
- With `--json` standard output is one JSON document and nothing else; an error is a JSON document on standard error.
- On a terminal there are colors; into a pipe or a file goes the same text without them, never cut to a width.
- Exit codes live here and nowhere else, one for each class of registry.errors.

Example
    >>> EXIT_CODES[errors.NotFound]
    4
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click
from pydantic import BaseModel, ValidationError

from registry import errors
from registry.errors import RegistryError
from registry.names import Ref

from . import main

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
LATER = EXIT_CODES[errors.Unavailable]
REASONS_SHOWN = 12

_JSON = "cli.as_json"
_OUTCOME_COLORS = {"pass": "green", "warn": "yellow", "fail": "red", "unknown": "magenta"}
Command = TypeVar("Command", bound=Callable[..., Any])


# ------------------------------------------------------------------ --json
def json_option(command: Command) -> Command:
    """Adds `--json` to a command. `as_json()` says whether it was given."""
    return click.option("--json", "as_json", is_flag=True, expose_value=False, callback=_note_json, help="Print JSON.")(
        command
    )


def _note_json(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    ctx.meta[_JSON] = value


def as_json() -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(_JSON))


def document(value: Any) -> Any:
    """Models, and lists and dictionaries of them, as plain JSON values."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: document(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [document(item) for item in value]
    return value


def answer(value: Any, text: Callable[[], None]) -> None:
    """The result of a command: `value` as JSON when that was asked for, else what `text` prints."""
    if as_json():
        click.echo(json.dumps(document(value), indent=2, ensure_ascii=False))
    else:
        text()


def note(message: str) -> None:
    """A remark beside the result: on standard error, and not with `--json`."""
    if not as_json():
        click.secho(message, err=True, dim=True)


# ------------------------------------------------------------------ errors
def tell(error: Exception, ctx: click.Context) -> int | None:
    """Print what went wrong and return the exit code; None for a bug, which keeps its trace."""
    error_shown = _known(error)
    if error_shown is None:
        return None
    if ctx.meta.get(_JSON):
        click.echo(json.dumps(error_shown.to_problem(), indent=2, ensure_ascii=False), err=True)
        return EXIT_CODES[type(error_shown)]
    click.echo(click.style("Error: ", fg="red", bold=True) + plain(error_shown.detail), err=True)
    reasons = [r for r in error_shown.reasons if r.message not in error_shown.detail]
    for reason in reasons[:REASONS_SHOWN]:
        location = f"{reason.location}: " if reason.location and reason.location not in reason.message else ""
        click.echo(plain(f"  - {location}{reason.message}"), err=True)
    if len(reasons) > REASONS_SHOWN:
        click.echo(f"  - and {len(reasons) - REASONS_SHOWN} more", err=True)
    if error_shown.next_step:
        click.echo(click.style("Next: ", bold=True) + plain(error_shown.next_step), err=True)
    return EXIT_CODES[type(error_shown)]


def exit_code_of(error: Exception) -> int:
    """The exit code that this error ends a command with; 1 for a bug."""
    registry_error = _known(error)
    return EXIT_CODES[type(registry_error)] if registry_error is not None else 1


def _known(error: Exception) -> RegistryError | None:
    if isinstance(error, RegistryError):
        return error
    if isinstance(error, ValidationError):
        return _of_request(error)
    if isinstance(error, OSError) and error.errno not in (None, errno.EPIPE):
        file = f"{error.filename}: " if error.filename else ""
        message = f"{file}{error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE):
            return errors.Unavailable("TRY_LATER", message)
        return errors.Invalid("FOLDER_INVALID", message)
    return None


def _of_request(error: ValidationError) -> RegistryError | None:
    """What was typed and goes into no request is bad input; an answer that cannot be read is a bug."""
    requests = main.load("registry.api", "Request").__subclasses__()  # loaded where one has refused something
    if error.title not in {shape.__name__ for shape in requests}:
        return None
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    return errors.Invalid("REQUEST_INVALID", f"{'.'.join(map(str, first['loc']))}: {message}")


# ------------------------------------------------------------------ arguments
class RefArgument(click.ParamType[Ref]):
    """A REF on the command line. What is none ends as our own error, with its next step."""

    name = "ref"

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> Ref:
        return value if isinstance(value, Ref) else Ref.parse(str(value))


REF = RefArgument()


# ------------------------------------------------------------------ text
def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: frozenset[str] = frozenset()) -> None:
    """Aligned columns, as wide as they need to be. A cell may be styled. `right` names columns of numbers."""
    lines = [list(row) for row in rows]
    widths = [max(len(click.unstyle(cell)) for cell in cells) for cells in zip(columns, *lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = []
        for name, cell, width in zip(columns, cells, widths, strict=True):
            gap = " " * (width - len(click.unstyle(cell)))
            padded.append(gap + cell if name in right else cell + gap)
        return "  ".join(padded).rstrip()

    click.secho(line([column.upper() for column in columns]), dim=True)
    for cells in lines:
        click.echo(line(cells))


def facts(pairs: Iterable[tuple[str, str]], *, indent: str = "  ") -> None:
    """Label and value, one pair a line; empty values are left out. Later lines of a value are indented alike."""
    shown = [(label, value) for label, value in pairs if value]
    width = max((len(label) for label, _ in shown), default=0)
    for label, value in shown:
        first, *rest = value.split("\n")
        click.echo(indent + click.style(label.ljust(width), dim=True) + "  " + first)
        for line in rest:
            click.echo(indent + " " * (width + 2) + line)


def outcome(text: str) -> str:
    """A verdict's outcome in its color; a dash where there is none."""
    return click.style(text, fg=_OUTCOME_COLORS.get(text)) if text else click.style("-", dim=True)


def strong(text: str) -> str:
    return click.style(text, bold=True)


def faint(text: str) -> str:
    return click.style(text, dim=True)


def plain(text: str) -> str:
    """A stranger's text, with what would steer the terminal written out."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """The same where a new line would look like the next entry of a list."""
    return plain(text).replace("\n", " ⏎ ")


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
    """A time in UTC to the minute. The exact one is in the JSON."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M") + " UTC" if at else ""


def alias_of(location: str, alias: str) -> tuple[str, str]:
    """`NAME ALIAS`, also where both were given as `NAME:ALIAS`."""
    if not alias and location.count(":") == 1:
        location, _, alias = location.partition(":")
    if not alias:
        raise click.UsageError("give NAME ALIAS, or NAME:ALIAS")
    return location, alias


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def on_terminal() -> bool:
    """Whether a person watches: only then are there progress bars."""
    return sys.stderr.isatty() and not as_json()
