"""The door opens one room at a time, and says what is missing in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli import main as door
from registry.client.local import hashing
from tests.cli.desk import Desk
from tests.import_table import ROOT


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_and_version_import_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from cli.main import main; main(sys.argv[1:], standalone_mode=False);"
        "print([m for m in ('httpx', 'pydantic', 'rich', 'fastapi', 'sqlmodel', 'torch') if m in sys.modules])"
    )
    said = python(code, *words)
    assert said.stdout.splitlines()[-1] == "[]", said.stderr


@pytest.mark.parametrize(("command", "watched"), [("push", "False"), ("serve", "True")])
def test_no_command_of_a_client_looks_for_plugins_of_pydantic(command: str, watched: str, tmp_path: Path) -> None:
    (tmp_path / "watcher.py").write_text("def new_schema_validator(*_, **__): return None, None, None\n")
    (tmp_path / "watcher-1.0.dist-info").mkdir()
    (tmp_path / "watcher-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: watcher\nVersion: 1.0\n")
    (tmp_path / "watcher-1.0.dist-info" / "entry_points.txt").write_text("[pydantic]\nwatcher = watcher\n")
    code = (
        f"import os, sys; sys.path.append({str(tmp_path)!r}); os.environ.pop('PYDANTIC_DISABLE_PLUGINS', '');"
        "from cli.main import main; main(sys.argv[1:], standalone_mode=False);"
        "from registry.api.transfer import PushCommit; print('watcher' in sys.modules)"
    )
    said = python(code, command, "--help")
    assert said.stdout.splitlines()[-1] == watched, said.stderr


def test_every_door_opens_and_its_help_says_what_it_does(desk: Desk) -> None:
    for name in door.DOORS:
        assert "Usage: " in desk(name, "--help").stdout


def test_every_command_takes_json() -> None:
    def commands(command: object, name: str) -> list[tuple[str, object]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            return [(name, command)]
        return [item for word, sub in inner.items() for item in commands(sub, f"{name} {word}")]

    without = [
        full
        for word, location in door.DOORS.items()
        for full, command in commands(door.load(location.module, location.attribute), word)
        if "--json" not in {option for param in command.params for option in param.opts}  # type: ignore[attr-defined]
    ]
    assert without == []


@pytest.mark.parametrize(
    ("command", "package", "extra"), [("serve", "fastapi", "server"), ("migrate", "sqlmodel", "server")]
)
def test_a_command_without_its_extra_says_what_to_install(command: str, package: str, extra: str) -> None:
    said = python(f"import sys; sys.modules['{package}'] = None; from cli.main import main; main()", command)
    assert said.returncode == 2
    assert said.stderr == (
        f"Error: adapter {command} needs the extra '{extra}' ({package} is not installed): "
        f"pip install 'adapter-registry[{extra}]'\n"
    )


@pytest.mark.usefixtures("desk")
def test_without_a_url_and_without_the_server_one_is_told_the_ways_out() -> None:
    said = python("import sys; sys.modules['fastapi'] = None; from cli.main import main; main()", "list")
    assert said.returncode == 2
    assert said.stderr.startswith("Error: no registry is set")
    assert "adapter login URL" in said.stderr
    assert "Traceback" not in said.stderr


def test_an_unknown_command_is_a_usage_error(desk: Desk) -> None:
    assert "No such command" in desk("frobnicate", expect=2).stderr


def test_the_door_begins_with_what_was_typed(desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun: list[tuple[str, int]] = []
    monkeypatch.setattr(hashing, "begin", lambda folder, depth: begun.append((folder, depth)))
    desk("push", str(tmp_path / "one"), "acme/one", expect=2)
    desk("push-all", str(tmp_path), "acme", expect=2)
    desk("list")
    desk("push", expect=2)
    assert begun == [(str(tmp_path / "one"), 0), (str(tmp_path), 1)]
