"""docs/reference/cli.md: every command of `adapter`, from click."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from cli import main
from cli.console import examples, output
from registry import errors
from scripts.reference.tables import table

INTRODUCTION = """\
# Command line

`adapter --help` lists the commands, `adapter COMMAND --help` shows this page's text. Every command takes:

| option | meaning |
| --- | --- |
| `-o`, `--output` | Format of the result: `text`, `json` or `yaml`. |
| `--json` | Same as `-o json`. |
| `-q`, `--quiet` | Print no notes and no progress. |
| `-v`, `--verbose` | Print each request to the registry with its status and time, on standard error. |

With `json` and `yaml` standard output is one document, and an error is a document on standard error.

A command with `--columns` prints rows: as `table`, which fits the terminal and shows relative times; `wide`, with every
column and exact times; `csv`, with exact values; `name`, one name a line; or a document. `--columns` takes the names of
columns, separated by commas, and `--sort` one of them; with `-` in front the largest comes first. A text in CSV that a
spreadsheet would read as a formula begins with `'`. Long output on a terminal goes through `PAGER` (`less`).

`adapter --timeout SECONDS COMMAND` limits the wait for each response, as `ADAPTER_TIMEOUT` does.

A **REF** names a version: `namespace/name` (the newest), `namespace/name:alias`, `namespace/name@3` or
`namespace/name@sha256:…`. A digest may be cut to its first 8 digits or more while they are unique within the
adapter.

The registry is `ADAPTER_REGISTRY` with `ADAPTER_TOKEN`, else the one of `adapter login`, else the embedded registry
in your data folder, which runs in the command's own process.
"""
NUMBERS = {"integer": "NUMBER", "integer range": "NUMBER", "float": "NUMBER", "float range": "NUMBER"}
VERBATIM = "\b\n"
"""How a paragraph of a help begins whose lines click keeps."""
SHARED = {"_output", "as_json", "_quiet", "_verbose", "_sort"}
"""Options that the introduction explains once."""
EXIT_CODES = {
    0: "Done.",
    1: "A bug: please report it.",
    2: "Invalid input or usage.",
    3: "Not signed in, or not allowed.",
    4: "Not found, or not visible to you.",
    5: "Conflict: read again, then decide again.",
    6: "Refused by a gate or a verdict.",
    70: "Corrupt bytes.",
    74: "This machine cannot go on: a full disk, a closed output, a removed folder.",
    75: "Temporarily unavailable: try again later.",
    130: "Interrupted with Ctrl-C.",
}


def commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """The command, or every command of the group, with its full name."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    context = click.Context(command)
    for word in command.list_commands(context):
        inner = command.get_command(context, word)
        if inner is None:
            raise LookupError(f"{name} lists {word} and does not have it")
        yield from commands(f"{name} {word}", inner)


def markdown() -> str:
    """The whole page."""
    codes = {*output.EXIT_CODES.values(), 0, 1, output.INTERRUPTED}
    if codes != EXIT_CODES.keys() or set(output.EXIT_CODES) < set(errors.CLASSES):
        raise LookupError(f"exit codes without a meaning: {sorted(codes ^ EXIT_CODES.keys())}")
    parts = [INTRODUCTION, table(["exit code", "meaning"], ((f"{c}", text) for c, text in EXIT_CODES.items()))]
    for section in dict.fromkeys(spec.section for spec in main.COMMANDS.values()):
        parts.append(f"## {section}\n")
        for word in (word for word, spec in main.COMMANDS.items() if spec.section == section):
            command = main.main.get_command(click.Context(main.main), word)
            if command is None:
                raise LookupError(f"adapter has no command {word}")
            parts += [_section(name, inner) for name, inner in commands(f"adapter {word}", command)]
    return "\n".join(parts)


def _section(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    options = [
        param
        for param in command.params
        if isinstance(param, click.Option) and not param.hidden and param.name not in SHARED
    ]
    parts = [
        f"### {name}\n",
        f"```text\n{usage}\n```\n",
        *_paragraphs("\n\n".join(filter(None, [command.help, command.epilog]))),
        "```text\n" + "\n".join(examples.read()[name.removeprefix("adapter ")]) + "\n```\n",
    ]
    parts += [table(["option", "meaning"], (_option(option, context) for option in options))] if options else []
    return "\n".join(parts)


def _paragraphs(text: str) -> Iterator[str]:
    """The help as Markdown."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        verbatim = paragraph.removeprefix(VERBATIM)
        yield f"```text\n{verbatim}\n```\n" if verbatim != paragraph else " ".join(paragraph.split()) + "\n"


def _option(option: click.Option, context: click.Context) -> tuple[str, str]:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    value = option.metavar or NUMBERS.get(option.type.name) or option.make_metavar(context)
    metavar = "" if option.is_flag else f" `{value}`"
    default = ", ".join(option.default) if isinstance(option.default, tuple) else option.default
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    shown = option.show_default or (option.show_default is None and is_number)
    hint = f" Default: `{default}`." if shown and not option.is_flag and default not in (None, "", ()) else ""
    help_text = (option.help or "") + (" Required." if option.required else "")
    return names + metavar, help_text + (hint if "Default" not in help_text else "")
