"""Types of arguments: REF, NAME, NAMESPACE, and texts of the form KEY=VALUE or NAME:ALIAS.

What does not parse ends in the parser's `Invalid`, with its next step unless the command cannot be undone.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, time, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from registry import lazy, names
from registry.durations import parse_duration
from registry.errors import Invalid
from registry.names import AdapterName, Ref

from . import output
from .options import DESTRUCTIVE

Value = TypeVar("Value")
KEY_FILE_LIMIT_BYTES = 512 * 2**10
_SIZE = re.compile(r"([0-9]{1,19})(?:([kKMGT])(i?)B)?")


class ParsedArgument(click.ParamType[Value]):
    """An argument with a parser. `refused`: marks that it may not contain → what they would make of it."""

    def __init__(self, name: str, parse: Callable[[str], Value], refused: Mapping[str, str] | None = None) -> None:
        self.name, self._parse, self._refused = name, parse, refused or {}

    def convert(self, value: Any, _param: click.Parameter | None, ctx: click.Context | None) -> Value:
        """Parse the typed text. `Invalid` (NAME_INVALID) for a part that the command does not take."""
        if not isinstance(value, str):
            parsed: Value = value
            return parsed
        command = str(ctx.command.name) if ctx is not None else ""
        for mark, meaning in self._refused.items():
            if mark in value:
                message = f"{command} needs {self.name.upper()} without {mark!r}: {value!r} names {meaning}"
                raise Invalid("NAME_INVALID", message)
        try:
            return self._parse(value)
        except Invalid as e:
            if value.startswith((".", "/", "~")):
                message = f"{value!r} is a path, and {command} needs {self.name.upper()} of the registry"
                raise Invalid(e.code, message, next_step="write NAMESPACE/NAME") from e
            if command == "list":
                raise Invalid(e.code, e.detail, next_step=f"adapter list --namespace {value}") from e
            if command in DESTRUCTIVE:  # a suggested name may be that of another object
                raise Invalid(e.code, e.detail, findings=e.findings) from e
            raise


def parse_subject(text: str) -> AdapterName | Ref:
    """An adapter, or with @ or : one of its versions."""
    return Ref.parse(text) if ":" in text or "@" in text else AdapterName.parse(text)


def parse_size(text: str) -> int:
    """Bytes from a number and a unit, if any: `500MB` is in powers of ten, `10GiB` in powers of two."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise Invalid("REQUEST_INVALID", f"{text[:40]!r} is not a size such as 500MB, 10GiB or 1000000 (bytes)")
    return int(match[1]) * int((1024 if match[3] else 1000) ** ("KMGT".index(match[2].upper()) + 1 if match[2] else 0))


def parse_signer(text: str) -> str:
    """The identity of a signer, or that of the public key in a file. `Invalid` (SIGNATURE_INVALID)."""
    path = Path(text)
    if path.is_file():
        with path.open("rb") as file:
            key = lazy.load("registry.attestations.keys:PublicKey").parse(file.read(KEY_FILE_LIMIT_BYTES))
        return str(key.identity)
    if ":" not in text and "@" not in text:
        message = (
            f"{text[:80]!r} is neither a file with a public key nor an identity, such as key:5f0c… or ci@example.org"
        )
        raise Invalid("SIGNATURE_INVALID", message, next_step="`adapter verify REF` shows who has signed a version")
    return text


def note_dry_run(_ctx: click.Context, _option: click.Parameter, value: bool) -> bool:
    """Callback of `--dry-run`: say that what follows did not happen."""
    if value:
        output.note("Dry run: nothing is changed. The result would be:")
    return value


REF = ParsedArgument("ref", Ref.parse)
SUBJECT = ParsedArgument("subject", parse_subject)
"""An adapter, or with @ or : one of its versions."""
DELETABLE = ParsedArgument("name", parse_subject, {":": "an alias, which may move; name a version as @3"})
NAME = ParsedArgument("name", AdapterName.parse, {"@": "a version", ":": "an alias"})
NAMESPACE = ParsedArgument("namespace", names.namespace)
SIZE = ParsedArgument("size", parse_size)
SIGNER = ParsedArgument("identity|file", parse_signer)
DURATION = ParsedArgument("time", parse_duration)
"""Seconds, from `90s`, `12h` or `7d`."""
DURATION_OR_NONE = ParsedArgument("time", partial(parse_duration, least=0))
"""The same, and `0s`."""
wait_timeout = click.option("--wait-timeout", "timeout", type=DURATION_OR_NONE, help="Wait at most so long: 90s, 15m …")

reason = click.option("--reason", default="", help="Reason; kept in the audit log.")
dry_run = click.option(
    "--dry-run", is_flag=True, callback=note_dry_run, help="Check the change and show its result, but change nothing."
)


def changes(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `reason` and `dry_run`, which the registry takes with the change."""
    return reason(dry_run(command))


def split_alias(name: str, alias: str) -> tuple[str, str]:
    """`NAME ALIAS`, also if both were given as `NAME:ALIAS`."""
    if not alias and name.count(":") == 1:
        name, _, alias = name.partition(":")
    if not alias:
        raise click.UsageError("give NAME ALIAS, or NAME:ALIAS")
    return name, alias


def pairs(texts: Iterable[str], option: str, form: str, *, empty_values: bool = False) -> dict[str, str]:
    """`KEY=VALUE` texts of a repeatable option as a dictionary. `form` is how the option is written."""
    split = [text.partition("=") for text in texts]
    for key, equals, value in split:
        if not (key and equals and (value or empty_values)):
            raise click.BadParameter(f"{key + equals + value!r} is not {form}", param_hint=option)
    return {key: value for key, _, value in split}


def tags(texts: Iterable[str]) -> dict[str, str]:
    """`KEY` or `KEY=VALUE` texts as a dictionary; a key alone has an empty value."""
    return {key: value for key, _, value in (text.partition("=") for text in texts)}


def read_time(text: str, option: str, *, end_of_day: bool = False) -> datetime:
    """An ISO 8601 time, in UTC if it has no offset; a date is its first moment, or with `end_of_day` its last.

    Or a duration such as `12h`, counted back from now. `Invalid` (REQUEST_INVALID) for anything else.
    """
    with suppress(Invalid):
        return datetime.now(UTC) - timedelta(seconds=parse_duration(text))
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError as e:
        problem = f"{option} {text[:60]!r} is not a time such as 2026-05-03T14:05Z, nor a duration such as 12h or 7d"
        raise Invalid("REQUEST_INVALID", problem) from e
    if end_of_day and len(text) == len("2026-05-03") and "W" not in text:
        parsed = datetime.combine(parsed, time.max)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
