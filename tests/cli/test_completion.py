"""What shells complete: commands and options, and refs, bases and aliases of the registry while it responds."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli.console import completion
from cli.console.completion import AdapterBashComplete
from cli.main import COMPLETION, main
from registry.client.transport import TransportError
from registry.client.transport.http_transport import HttpTransport
from tests.cli.runner import CommandRunner
from tests.import_table import ROOT

PATIENT_SECONDS = 60.0
"""What a shell does not wait for; a busy machine may."""


@pytest.mark.parametrize(
    ("kind", "text", "names"),
    [
        ("ref", "acme/s", ["acme/support"]),
        ("ref", "acme/support:", ["acme/support:prod"]),
        ("ref", "acme/support@", ["acme/support@2", "acme/support@1"]),
        ("base", "ti", ["tiny-llama"]),
        ("alias", "p", ["prod"]),
        ("namespace", "a", ["acme"]),
        ("ref", "acme/none:", []),
        ("ref", "Bad Name:", []),
    ],
)
@pytest.mark.usefixtures("released")
def test_names_of_the_registry_are_completed(
    monkeypatch: pytest.MonkeyPatch, kind: str, text: str, names: list[str]
) -> None:
    monkeypatch.setattr(completion, "SECONDS", PATIENT_SECONDS)
    assert completion.candidates(kind, text) == names


@pytest.mark.parametrize(
    ("words", "aliases"),
    [
        (["gate", "show", "acme/support"], ["prod", "canary", "beta"]),
        (["gate", "show", "acme"], ["beta"]),
        (["promote", "acme/support@1"], ["prod", "canary", "beta"]),
        (["rollback", "acme/support"], ["prod", "canary", "beta"]),
    ],
)
def test_aliases_are_those_of_the_adapter_on_the_line_and_of_its_gates(
    released: CommandRunner, monkeypatch: pytest.MonkeyPatch, words: list[str], aliases: list[str]
) -> None:
    released("gate", "set", "acme/support", "canary", "--approvals", "1")
    released("gate", "set", "acme", "beta", "--approvals", "1")
    monkeypatch.setenv(COMPLETION, "bash_complete")  # commands are loaded with their completions
    shell = AdapterBashComplete(main, {}, "adapter", COMPLETION)
    assert [item.value for item in shell.get_completions(words, "")] == aliases


@pytest.mark.usefixtures("cli")
def test_a_registry_that_is_away_or_silent_completes_nothing_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(completion, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (silent.getsockname()[1], 9):
            monkeypatch.setenv("ADAPTER_REGISTRY", f"http://127.0.0.1:{port}")
            assert completion.candidates("ref", "acme/") == []
    monkeypatch.setenv("ADAPTER_REGISTRY", "no url")
    assert completion.candidates("ref", "acme/") == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("cli")
def test_a_completion_repeats_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "SECONDS", PATIENT_SECONDS)
    urls: list[str] = []

    def refuse(_transport: HttpTransport, _method: str, url: str, *_: object, **__: object) -> None:
        urls.append(url)
        raise TransportError("Connection refused", url, broke=True)

    monkeypatch.setattr(HttpTransport, "open", refuse)
    monkeypatch.setenv("ADAPTER_REGISTRY", "http://127.0.0.1:9")
    assert (completion.candidates("ref", "acme/"), len(urls)) == ([], 1)


@pytest.mark.security
@pytest.mark.usefixtures("cli")
@pytest.mark.parametrize(
    "name", ["acme/$(touch hacked)", "acme/x\nfile,/", "acme/x\x1b[2J", "acme/x;id", "acme/x y", "acme/`id`", "-rf/x"]
)
def test_a_name_that_a_shell_could_execute_or_show_is_not_completed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(completion._CANDIDATES, "ref", lambda *_: [name, "acme/support"])
    assert completion.candidates("ref", "acme/") == ["acme/support"]


def test_the_embedded_registry_is_not_created_by_a_completion(cli: CommandRunner) -> None:
    (cli.folder / "data" / "registry.db").unlink()
    assert completion.candidates("base", "") == []
    assert not (cli.folder / "data" / "registry.db").exists()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_a_ref_by_the_installed_script(released: CommandRunner, tmp_path: Path) -> None:
    """Bash takes `acme/support:pr` for three words; the script replaces only the last."""
    installed = Path(released("completion", "bash", "--install", "--json", XDG_DATA_HOME=str(tmp_path)).json["path"])
    assert installed.is_relative_to(tmp_path)
    assert installed.read_text() == released("completion", "bash").stdout
    released("context", "add", "local", "embedded")
    command = tmp_path / "bin" / "adapter"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m cli.main "$@"\n')
    command.chmod(0o755)
    script = f"source {installed}\n"
    for line in ("adapter show acme/support:pr", "adapter list --namesp", "adapter token cr", "adapter context use lo"):
        script += (
            f'COMP_LINE="{line}" COMP_POINT={len(line)}; _adapter_completion {command}; echo "${{COMPREPLY[@]}}"\n'
        )
    path = f"{command.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PATH": path}, check=True
    )
    assert ran.stdout.splitlines() == ["prod", "--namespace", "create", "local"]


@pytest.mark.parametrize(("shell", "part"), [("zsh", "#compdef adapter"), ("fish", "complete --no-files")])
def test_other_shells_have_their_own_script(cli: CommandRunner, tmp_path: Path, shell: str, part: str) -> None:
    assert part in cli("completion", shell).stdout
    result = cli("completion", shell, "--install", HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path))
    assert sum(part in path.read_text() for path in tmp_path.rglob("*adapter*") if path.is_file()) == 1
    assert ("zshrc" in result.stderr) == (shell == "zsh")


def test_open_leads_to_the_page_of_an_adapter_or_version(
    released: CommandRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def open_url(url: str) -> bool:
        opened.append(url)
        return True

    monkeypatch.setattr("webbrowser.open", open_url)
    assert "the embedded registry has no pages" in released("open", "acme/support", expect=2).stderr
    monkeypatch.setenv("ADAPTER_REGISTRY", "https://registry.example.org/hub")
    assert released("open", "acme/support").stdout == "https://registry.example.org/hub/adapters/acme/support\n"
    assert released("open", "acme/support", "--print", "--json").json["opened"] is False
    assert opened == ["https://registry.example.org/hub/adapters/acme/support"]
