"""The table of commands: lazy imports, help, --json, missing extras."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from cli import main
from tests.cli.runner import CommandRunner
from tests.import_table import ROOT


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_and_version_import_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from cli.main import main; main(sys.argv[1:], standalone_mode=False);"
        "print([m for m in ('urllib3', 'fastapi', 'sqlalchemy', 'torch') if m in sys.modules])"
    )
    result = python(code, *words)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr


def test_every_command_has_help(cli: CommandRunner) -> None:
    for name in main.COMMANDS:
        assert "Usage: " in cli(name, "--help").stdout


def test_no_command_of_a_group_has_a_cut_help() -> None:
    for name in main.COMMANDS:
        command = main.main.get_command(click.Context(main.main), name)
        if isinstance(command, click.Group):
            text = command.get_help(click.Context(command, info_name=name, terminal_width=80))
            assert "..." not in text.partition("Commands:")[2], text


def test_every_command_takes_json() -> None:
    def commands(command: object, name: str) -> list[tuple[str, object]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            return [(name, command)]
        return [item for word, sub in inner.items() for item in commands(sub, f"{name} {word}")]

    without = [
        full
        for word in main.COMMANDS
        for full, command in commands(main.main.get_command(click.Context(main.main), word), word)
        if "--json" not in {option for param in command.params for option in param.opts}  # type: ignore[attr-defined]
    ]
    assert without == []


@pytest.mark.parametrize(
    ("command", "package", "extra"), [("serve", "fastapi", "server"), ("migrate", "sqlmodel", "server")]
)
def test_a_command_without_its_extra_says_what_to_install(command: str, package: str, extra: str) -> None:
    result = python(f"import sys; sys.modules['{package}'] = None; from cli.main import main; main()", command)
    assert result.returncode == 2
    assert result.stderr == (
        f"Error: adapter {command} needs the extra '{extra}' ({package} is not installed)\n"
        f"Next: in a checkout, pip install '.[{extra}]'\n"
    )


@pytest.mark.usefixtures("cli")
def test_without_a_url_and_the_server_extra_the_error_lists_the_choices() -> None:
    result = python("import sys; sys.modules['fastapi'] = None; from cli.main import main; main()", "list")
    assert result.returncode == 2
    assert result.stderr.startswith("Error: the embedded registry needs the extra 'server'")
    assert "adapter login URL" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_command_is_a_usage_error(cli: CommandRunner) -> None:
    assert "No such command" in cli("frobnicate", expect=2).stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "--limit", "0", "--json"], "'--limit'"), (["list", "--limit", "0", "-ojson"], "'--limit'"),
        (["base", "list", "--frobnicate", "--output=json"], "--frobnicate"),
        (["frobnicate", "-o", "json"], "frobnicate"), (["show", "--json"], "Missing argument"),
        (["gate", "set", "acme:prod", "--require", "engine", "--json"], "name the engine with --engine"),
    ],
)  # fmt: skip
def test_a_usage_error_is_a_document_if_one_was_asked_for(cli: CommandRunner, words: list[str], message: str) -> None:
    result = cli(*words, expect=2)
    assert (result.stdout, result.problem["code"]) == ("", "REQUEST_INVALID")
    assert message in result.problem["detail"]
    assert "--help" in result.problem["next_step"]


def test_a_usage_error_is_text_if_no_document_was_asked_for(cli: CommandRunner) -> None:
    assert cli("list", "--limit", "0", "--", "--json", expect=2).stderr.startswith("Usage:")


@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_ctrl_c_exits_130(cli: CommandRunner, monkeypatch: pytest.MonkeyPatch, json_option: list[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("registry.client.registry.Registry.bases", interrupt)
    result = cli("base", "list", *json_option, expect=130)
    assert result.stdout == ""
    if json_option:
        assert result.problem["code"] == "INTERRUPTED"
    else:
        assert result.stderr == "Interrupted.\n"


@pytest.mark.security
@pytest.mark.parametrize(
    "words",
    [
        ["namespace", "create", "?"], ["namespace", "show", "?"], ["namespace", "grant", "acme", "?", "pusher"],
        ["list", "--text", "?"], ["list", "--target", "?"], ["job", "show", "?"], ["job", "list", "--ref", "?"],
        ["lineage", "--dataset", "?"], ["audit", "log", "--action", "?"], ["show", "?/?"], ["check", "?"],
        ["push", ".", "acme/x", "--tag", "team=?"], ["push", ".", "acme/x", "-m", "?"], ["webhook", "create", "?"],
        ["token", "create", "?", "--scope", "pull"], ["promote", "acme/x", "prod", "--reason", "?"], ["login", "?"],
    ],
)  # fmt: skip
def test_an_argument_that_is_not_utf_8_is_bad_input(cli: CommandRunner, words: list[str]) -> None:
    for options in ([], ["--json"]):
        result = cli(*(word.replace("?", "caf\udce9") for word in words), *options, expect=2)
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        assert result.stderr.isprintable() or all(line.isprintable() for line in result.stderr.splitlines())


def test_a_folder_may_have_a_name_that_is_not_utf_8(cli: CommandRunner) -> None:
    cli.add_base()
    folder = cli.make_adapter("caf\udce9")
    assert cli("push", folder, "acme/support", "--base", "tiny-llama", "--json").json["created"]
