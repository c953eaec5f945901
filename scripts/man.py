"""`python -m scripts.man FOLDER` writes a manual page for each command: adapter.1, adapter-push.1, adapter-token.1 …

`make build` puts them into the wheel, under share/man/man1. `man` finds them if the environment's `bin` is on the PATH.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from cli import main
from cli.console import examples
from scripts.reference import cli

NAMES = "Adapter registry"


def pages() -> dict[str, str]:
    """File name → text of each page, in the language of man(7)."""
    parts: dict[str, list[tuple[str, click.Command]]] = {}
    for name, command in cli.commands("adapter", main.main):
        parts.setdefault(" ".join(name.split()[:2]), []).append((name, command))
    texts = {f"{name.replace(' ', '-')}.1": _page(name, commands) for name, commands in parts.items()}
    return {"adapter.1": _overview(), **texts}


def _overview() -> str:
    lines = [*_head("adapter", "push, check, promote, serve and audit LoRA adapters"), ".SH SYNOPSIS"]
    lines += [r"\fBadapter\fR [\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGUMENTS\fR]", ".SH DESCRIPTION"]
    lines += _paragraphs(inspect.cleandoc(main.main.help or ""))
    lines += [".SH OPTIONS", *_options(main.main)]
    for section in dict.fromkeys(spec.section for spec in main.COMMANDS.values()):
        lines.append(f".SH {_text(section).upper()}")
        for name, spec in main.COMMANDS.items():
            if spec.section == section:
                lines += [".TP", rf"\fBadapter\-{_text(name)}\fR(1)", _text(spec.help)]
    lines.append(".SH EXIT STATUS")
    for code, meaning in cli.EXIT_CODES.items():
        lines += [".TP", rf"\fB{code}\fR", _text(meaning)]
    return "\n".join([*lines, ""])


def _page(name: str, commands: list[tuple[str, click.Command]]) -> str:
    lines = [*_head(name.replace(" ", "-"), main.COMMANDS[name.split()[1]].help.rstrip("."))]
    lines += [".SH SYNOPSIS", *_joined([_synopsis(full, command) for full, command in commands])]
    for full, command in commands:
        lines.append(".SH DESCRIPTION" if len(commands) == 1 else f".SH {_text(full).upper()}")
        lines += _paragraphs("\n\n".join(filter(None, [inspect.cleandoc(command.help or ""), command.epilog])))
        lines += [".SH OPTIONS" if len(commands) == 1 else ".SS Options", *_options(command)]
        lines += [".SH EXAMPLES" if len(commands) == 1 else ".SS Examples", ".nf"]
        lines += [_text(line) for line in examples.read()[full.removeprefix("adapter ")]]
        lines.append(".fi")
    return "\n".join([*lines, ".SH SEE ALSO", r"\fBadapter\fR(1), which lists the exit codes", ""])


def _head(name: str, summary: str) -> list[str]:
    title = _text(name)
    return [f'.TH {title.upper()} 1 "" "" "{NAMES}"', ".SH NAME", rf"{title} \- {_text(summary)}"]


def _synopsis(name: str, command: click.Command) -> str:
    pieces = command.collect_usage_pieces(click.Context(command, info_name=name))
    return rf"\fB{_text(name)}\fR " + " ".join(rf"\fI{_text(piece)}\fR" for piece in pieces)


def _options(command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name="adapter")
    options = (param for param in command.get_params(context) if isinstance(param, click.Option))
    for option in options:
        if (record := option.get_help_record(context)) is not None:
            yield from (".TP", rf"\fB{_text(record[0])}\fR", _text(" ".join(record[1].split())))


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(text.split("\n\n")):
        yield from ([".PP"] if number else [])
        if paragraph.startswith(cli.VERBATIM):
            yield from (".nf", *map(_text, paragraph.splitlines()[1:]), ".fi")
        else:
            yield _text(" ".join(paragraph.split()))


def _joined(lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield from ([".br"] if number else [])
        yield line


def _text(text: str) -> str:
    """Text as it appears: a backslash, a hyphen, and a dot or quote at the start of a line are marked."""
    marked = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
    return rf"\&{marked}" if marked.startswith((".", r"\(aq")) else marked


def write(folder: Path) -> None:
    """Write every page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
