"""What docs/serving/ tells a reader to type exists: each `adapter` command and each of its options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click

from registry import engines
from tests.import_table import ROOT
from tests.test_docs import LINK, commands

FOLDER = ROOT / "docs/serving"
COMMANDS = dict(commands())


def lines(text: str) -> Iterator[str]:
    """The lines of fenced and indented code that begin with `adapter`; a line that ends in \\ goes on in the next."""
    fenced = False
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            typed = line.strip().removeprefix("$ ")
            if typed.startswith("adapter "):
                yield typed


def wrong(typed: str) -> list[str]:
    """What of a typed line the command line does not know."""
    words = shlex.split(re.split(r" [|>;&]", typed)[0])
    command = next((c for name, c in COMMANDS.items() if words[: len(name.split())] == name.split()), None)
    if command is None:
        return [f"{typed}: no such command"]
    known = {o for p in command.params if isinstance(p, click.Option) for o in [*p.opts, *p.secondary_opts]}
    return [f"{typed}: no option {w}" for w in words if w.startswith("-") and w.split("=")[0] not in known]


def test_every_line_to_type_is_a_command_with_options_that_it_has() -> None:
    typed = [(path.name, line) for path in sorted(FOLDER.glob("*.md")) for line in lines(path.read_text())]
    assert len({name for name, _ in typed}) > 1
    assert [(name, fault) for name, line in typed for fault in wrong(line)] == []


def test_a_command_or_an_option_that_does_not_exist_is_found() -> None:
    fence = "```\n$ adapter export smollm2 /srv \\\n  --purge | less --raw\n```\n"
    text = f"    adapter exprot smollm2\n\n{fence}\nadapter words\n"
    assert [fault.split(": ")[1] for line in lines(text) for fault in wrong(line)] == [
        "no such command",
        "no option --purge",
    ]


def test_every_page_is_linked_from_the_index() -> None:
    linked = {Path(link).name for link in LINK.findall((FOLDER / "README.md").read_text())}
    assert {path.name for path in FOLDER.glob("*.md")} - linked == {"README.md"}


def test_every_engine_profile_that_a_page_names_is_one_that_the_rules_know() -> None:
    text = "\n".join(path.read_text() for path in FOLDER.glob("*.md"))
    named = set(re.findall(r"--(?:engine|profile) ([a-z.-]+==[^\s`]+)", text))
    assert len(named) > 10
    assert [asked for asked in sorted(named) if not asked.startswith(str(engines.profile(asked)))] == []
