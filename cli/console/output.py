"""Prints results and errors: text, JSON or YAML, one exit code for each class of error. Rows: cli/console/tables.py.

    0 done · 1 bug · 2 bad input or usage · 3 not signed in or denied · 4 not found · 5 conflict
    6 refused by a gate or verdict · 70 corrupt · 75 try again later · 130 interrupted

- With `-o json` (`--json`) or `-o yaml`, standard output is one document and nothing else; an error is a document on
  standard error.
- Every text goes through `line`, `facts`, `table` or `result`, which escape what could steer a terminal. Only styles
  that this module made become terminal codes: they carry a mark that no text from elsewhere can know.

Example
    >>> EXIT_CODES[errors.NotFound]
    4
"""

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import click

from registry import errors, lazy
from registry.api.models import Request
from registry.durations import to_utc
from registry.errors import RegistryError
from registry.findings import Finding
from registry.validation import first_problem

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
    errors.LocalFault: 74,
    errors.Unavailable: 75,
}
NOT_FOUND = EXIT_CODES[errors.NotFound]
REFUSED = EXIT_CODES[errors.Refused]
CORRUPT = EXIT_CODES[errors.Corrupt]
TRY_LATER = EXIT_CODES[errors.Unavailable]
INTERRUPTED = 130
_FULL = {errno.ENOSPC: "its disk is full", errno.EDQUOT: "the quota of its disk is used up"}
CLEAR_LINE = "\r\x1b[2K"
FINDINGS_SHOWN = 12

DOCUMENTS = ("json", "yaml")
FORMATS = ("text", *DOCUMENTS)
ROW_FORMATS = ("table", "wide", *DOCUMENTS, "csv", "name")
"""The formats of a command that prints rows."""
TEXTS = ("", "text", "table", "wide")
_OUTCOME_COLORS = {"pass": "green", "warn": "yellow", "fail": "red", "unknown": "magenta"}
_STYLES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "magenta": 35, "cyan": 36}
_MARK = f"\x1b{os.urandom(8).hex()}"
_STYLED = re.compile(f"{_MARK}([0-9]+)m")


def setting(name: str, ctx: click.Context | None = None) -> str:
    """The value of an option that every command has, such as `output` or `quiet`; empty if it was not used."""
    ctx = ctx or click.get_current_context(silent=True)
    return str(ctx.meta.get(f"cli.{name}", "")) if ctx is not None else ""


def output_format() -> str:
    """The format of the result: one of `ROW_FORMATS`, empty for the text or the table of a command."""
    return setting("output")


def is_document() -> bool:
    """Whether the result is one JSON or YAML document."""
    return output_format() in DOCUMENTS


def is_text() -> bool:
    """Whether people read the result: it is neither a document nor CSV nor names."""
    return output_format() in TEXTS


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


def document_text(value: Any, ctx: click.Context | None = None) -> str:
    """JSON or YAML, as the command was called."""
    text = json_text(value)
    if setting("output", ctx) != "yaml":
        return text
    plain: str = lazy.load("yaml:safe_dump")(
        json.loads(text), sort_keys=False, allow_unicode="\\u" not in text, width=120
    )
    return plain.removesuffix("\n")


def print_document(value: Any) -> None:
    """Print a value as JSON or YAML."""
    click.echo(document_text(value))


def result(value: Any, text: Callable[[], None]) -> None:
    """Print the result of a command: `value` as the document that was asked for, else what `text` prints."""
    if is_document():
        print_document(value)
    else:
        with page_output():
            text()


def note(message: str) -> None:
    """Print a remark beside the result, on standard error; nothing beside a document or with `--quiet`."""
    if not is_document() and not setting("quiet"):
        line(faint(message), err=True)


def confirm(question: str, yes: bool) -> None:
    """Ask on standard error, unless `yes`. `Invalid` (REQUEST_INVALID) for any other answer."""
    try:
        answer = "yes" if yes or click.confirm(question, err=True) else "no"
    except click.Abort:
        if sys.stdin.isatty():  # Ctrl-C; else standard input has ended
            raise
        click.echo(err=True)  # the question stands alone on its line
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
    if setting("output", ctx) in DOCUMENTS:
        click.echo(document_text(known_error.to_problem(), ctx), err=True)
        return EXIT_CODES[type(known_error)]
    line(styled("Error: ", "red", "bold") + known_error.detail, err=True)
    findings = [finding for finding in known_error.findings if finding.message not in known_error.detail]
    for finding in findings[:FINDINGS_SHOWN]:
        location = f"{finding.location}: " if finding.location and finding.location not in finding.message else ""
        line(f"  - {location}{finding.message}", err=True)
    if len(findings) > FINDINGS_SHOWN:
        line(f"  - and {len(findings) - FINDINGS_SHOWN} more", err=True)
    if advice := advice_of(known_error):
        line(strong("Next: ") + advice, err=True)
    return EXIT_CODES[type(known_error)]


def advice_of(error: RegistryError) -> str:
    """The nearest name, if one is known, and the next step."""
    guess = f"did you mean '{error.candidates[0]}'?" if error.candidates else ""
    return f"{guess} {error.next_step}".strip()


def print_usage_error(error: click.ClickException, ctx: click.Context) -> int:
    """Print an error in the words of a command line as a document, and return its exit code."""
    own = error.ctx if isinstance(error, click.UsageError) and error.ctx is not None else ctx
    problem = errors.Invalid(
        "REQUEST_INVALID", error.format_message(), next_step=f"read `{own.command_path} --help`"
    ).to_problem()
    click.echo(document_text(problem, ctx), err=True)
    return error.exit_code


def print_interrupted(ctx: click.Context) -> int:
    """Print that Ctrl-C ended the command, and return its exit code."""
    problem = {"type": "about:blank", "title": "Interrupted", "code": "INTERRUPTED", "detail": "interrupted"}
    is_document = setting("output", ctx) in DOCUMENTS
    click.echo(document_text(problem, ctx) if is_document else "Interrupted.", err=True)
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
        file = f"'{error.filename}'" if error.filename else ""
        if error.errno in _FULL:
            subject = file or "a file or standard output"
            return errors.LocalFault("LOCAL_FAULT", f"{subject} cannot be written: {_FULL[error.errno]}")
        if error.errno == errno.ENOENT and not file:  # of `getcwd`
            message = "the working folder was removed"
            return errors.LocalFault("LOCAL_FAULT", message, next_step="change to another one")
        message = f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
        if error.errno == errno.EMFILE:
            return errors.LocalFault("LOCAL_FAULT", message)
        return errors.Invalid("FOLDER_INVALID", message)
    return None


def _invalid_request(error: Any) -> RegistryError | None:
    """Arguments that no request can hold are bad input; a response that cannot be parsed is a bug."""
    if error.title not in _names_of(Request):
        return None
    location, message = first_problem(error)
    return errors.Invalid("REQUEST_INVALID", f"{location}: {message}" if location else message)


def _names_of(schema: type) -> set[str]:
    """The names of all schemas that are made from this one."""
    children: list[type] = schema.__subclasses__()
    return {child.__name__ for child in children}.union(*map(_names_of, children))


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


_page: ContextVar[list[tuple[str, bool]] | None] = ContextVar("page", default=None)
"""Lines that `page_output` collects, and whether each is for standard error."""


def line(text: str = "", *, err: bool = False) -> None:
    """Print one line. Styles of `styled` become terminal codes; everything else is escaped by `one_line`."""
    parts = _STYLED.split(text)  # text, code, text, code, …
    printed = "".join(f"\x1b[{part}m" if n % 2 else one_line(part) for n, part in enumerate(parts))
    collected = _page.get()
    if collected is None:
        click.echo(printed, err=err)
    else:
        collected.append((printed, err))


@contextmanager
def page_output() -> Iterator[None]:
    """Show the lines that are printed meanwhile in the user's pager if the terminal has fewer."""
    if not sys.stdout.isatty() or _page.get() is not None:
        yield
        return
    collected: list[tuple[str, bool]] = []
    token = _page.set(collected)
    try:
        yield
    finally:
        _page.reset(token)
        size = shutil.get_terminal_size()
        texts = [text for text, err in collected if not err]
        if sum(1 + (len(text) - 1) // size.columns for text in texts) < size.lines:
            for text, err in collected:
                click.echo(text, err=err)
        else:
            click.echo_via_pager("\n".join([*texts, ""]))
            for text in (text for text, err in collected if err):
                click.echo(text, err=True)


def width(text: str) -> int:
    """How many characters of a terminal a text takes."""
    return len(one_line(unstyled(text)))


def cut(text: str, limit: int) -> str:
    """The text in at most `limit` characters, with `…` at the end if it is longer. It keeps its first style."""
    plain = one_line(unstyled(text))
    if len(plain) <= limit:
        return text
    style = _STYLED.match(text)
    short = plain[: limit - 1] + "…"
    return f"{style[0]}{short}{_MARK}0m" if style else short


def wrap(text: str, limit: int) -> list[str]:
    """The text in lines of at most `limit` characters, unless a word is longer."""
    first, *words = text.split(" ")
    lines = [first]
    for word in words:
        if width(lines[-1]) + 1 + width(word) <= limit:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def facts(rows: Iterable[tuple[str, str | Sequence[str]]], *, indent: str = "  ") -> None:
    """Label and value, one pair a line; empty values are left out. A sequence is a value of several lines."""
    filled = [(label, [value] if isinstance(value, str) else value) for label, value in rows if value]
    width = max((len(label) for label, _ in filled), default=0)
    for label, (first, *rest) in filled:
        line(indent + faint(label.ljust(width)) + "  " + first)
        for text in rest:
            line(indent + " " * (width + 2) + text)


def size(count: int) -> str:
    """Bytes for people, in powers of ten as disks and networks count: `4.7 MB`."""
    number, unit = _scaled(count, ("B", "kB", "MB", "GB", "TB"))
    return f"{number:.0f} {unit}" if unit == "B" or 100 <= number < 999.5 else f"{number:.1f} {unit}"


def amount(count: int) -> str:
    """A large number for people: `134.5 M`."""
    number, unit = _scaled(count, ("", "k", "M", "G"))
    return f"{number:.1f} {unit}" if unit else f"{number:.0f}"


def _scaled(count: int, units: Sequence[str]) -> tuple[float, str]:
    """The number in the first of these units in which it has at most three digits; each is a thousand of the last."""
    power = next((power for power in range(len(units) - 1) if count / 1000**power < 999.5), len(units) - 1)
    return count / 1000**power, units[power]


def moment(at: datetime | None) -> str:
    """A time in UTC to the second."""
    return to_utc(at).strftime("%Y-%m-%d %H:%M:%S") + " UTC" if at else ""


def duration(seconds: float) -> str:
    """A length of time for people: `40 s`, `5 min`, `3.2 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def plural(count: int, noun: str) -> str:
    """The count and the noun, with an s unless the count is 1: 2 versions, 2 aliases."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


def some(items: Sequence[str], limit: int) -> str:
    """The first items, and how many more there are."""
    more = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {more} more" if more > 0 else "")
