"""One word for one thing, over all commands: the table of the words of the command line."""

from collections import defaultdict
from collections.abc import Iterator

import click

from cli.console import options
from cli.main import COMMANDS

OTHER_WORDS = {
    "--comment": "--reason", "--message": "the text of a version: push, push-all and convert",
    "--to": "an alias: promote and approve", "--from": "an alias: promote and approve",
    "--timeout": "--wait-timeout for a wait; that of a response stands before the command",
    "--save": "--out", "--output-file": "--out", "--key": "--signing-key, --public-key or --log-key",
    "--sign": "--signing-key", "--days": "--expires", "--profile": "--engine", "--delete": "a command `delete`",
}  # fmt: skip
"""Word that was, or is elsewhere, in use → the word for it, or the commands that it belongs to."""
BELONG = {
    "--message": {"push", "push-all", "convert"},
    "--to": {"promote", "approve"},
    "--from": {"promote", "approve"},
}
TWO_KINDS = {
    "-o": "only lists are also a table or CSV",
    "--after": "an entry of the audit log has a number, a check a cursor",
    "--base": "a worker takes the folder of a base beside its name",
    "--dataset": "a push declares a name and an address, a lineage starts from either",
    "--format": "the formats that convert makes are fewer than those that list finds",
    "--golden": "a push sends samples, a gate requires them",
    "--into": "a conversion makes a version, never a folder",
    "--method": "a method of merging, and a method of PEFT",
    "--provenance": "push-all names a file in each folder",
    "--state": "jobs and deliveries have other states",
}
"""Options whose value is not of one kind in all commands, and why."""


def _commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for word, inner in command.commands.items():
            yield from _commands(inner, f"{name} {word}")
    else:
        yield name, command


def _options() -> Iterator[tuple[str, click.Option]]:
    for word, spec in COMMANDS.items():
        for name, command in _commands(spec.load(word), word):
            yield from ((name, param) for param in command.params if isinstance(param, click.Option))


def test_the_value_of_an_option_is_of_one_kind_in_every_command() -> None:
    kinds: defaultdict[str, set[str]] = defaultdict(set)
    for _, option in _options():
        metavar = "" if option.is_flag else option.make_metavar(click.Context(click.Command("x")))
        kinds[option.opts[0]].add(metavar)
    assert {name: kind for name, kind in kinds.items() if len(kind) > 1 and name not in TWO_KINDS} == {}
    assert [name for name in TWO_KINDS if len(kinds[name]) < 2] == []


def test_no_command_has_another_word_for_a_thing_that_has_one() -> None:
    found = [(command, word) for command, option in _options() for word in option.opts if word in OTHER_WORDS]
    assert [(command, word) for command, word in found if command not in BELONG.get(word, ())] == []
    assert {word for _, word in found} == set(BELONG), "a row for a word that no command has any more"


def test_a_time_has_a_unit() -> None:
    units = ("SECONDS", "MINUTES", "HOURS", "DAYS")
    found = [
        (command, option.opts[0])
        for command, option in _options()
        if (option.metavar or "") in units or option.opts[0].upper().endswith(tuple(f"-{unit}" for unit in units))
    ]
    assert found == []


def test_what_ends_something_asks_first() -> None:
    """A script says `--yes`; a person is asked."""
    asks = {command for command, option in _options() if "--yes" in option.opts}
    ends = {command for command, _ in _options() if command.rpartition(" ")[2] in options.ASKING}
    assert ends - asks == set()


CHANGING = frozenset({"cancel", "delete", "grant", "promote", "rename", "revoke", "rollback", "set"})
"""Verbs that change what others use: each says why, and can be tried."""
WITHOUT = {
    "--reason": {"tag delete": "hundreds of adapters: the group has an id", "context delete": "on this machine"},
    "--dry-run": {
        "job cancel": "it ends work, and moves nothing", "context delete": "on this machine",
        "base delete": "is refused while something uses it", "base alias delete": "is given back by one command",
    },
}  # fmt: skip


def test_what_changes_something_says_why_and_can_be_tried() -> None:
    has = defaultdict(set)
    for command, option in _options():
        has[command].add(option.opts[0])
    changing = {command for command in has if command.rpartition(" ")[2] in CHANGING}
    for word, exceptions in WITHOUT.items():
        assert {command for command in changing if word not in has[command]} == set(exceptions), word


def test_every_command_has_what_all_have() -> None:
    """A test of the class, because a command without it would lack `--json`, its examples and its checks in silence."""
    commands = (inner for word, spec in COMMANDS.items() for inner in _commands(spec.load(word), word))
    assert [name for name, command in commands if not isinstance(command, options.Command)] == []
