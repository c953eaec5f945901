"""Every command has examples, and the command line takes each of them."""

from __future__ import annotations

import re
import shlex
from typing import Any

import click
import pytest

from cli import main
from cli.console import examples
from scripts.reference import cli as page
from tests.cli.runner import CommandRunner

COMMANDS = {name.removeprefix("adapter "): command for name, command in page.commands("adapter", main.main)}
EXAMPLES = [(name, line) for name, lines in examples.read().items() for line in lines]


def test_every_command_has_examples_and_every_example_a_command() -> None:
    assert list(examples.read()) == list(COMMANDS)
    assert all(lines for lines in examples.read().values())


@pytest.mark.parametrize(("name", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_an_example_is_a_line_that_its_command_takes(name: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def existing(_path: click.Path, value: Any, *_: object) -> Any:
        return value

    monkeypatch.setattr(click.Path, "convert", existing)
    typed = line.partition("$(")[2].rstrip(")") or line  # ADAPTER_TOKEN=$(adapter …)
    words = shlex.split(re.split(r" [|<>;&]", typed)[0])
    parts = name.split()
    assert words[: 1 + len(parts)] == ["adapter", *parts]
    COMMANDS[name].make_context(name, words[1 + len(parts) :])


def test_a_help_ends_with_its_examples(cli: CommandRunner) -> None:
    assert cli("token", "create", "--help").stdout.endswith(
        "Examples:\n  adapter token create trainer-7 --scope push --namespace acme --expires 90d\n"
    )
