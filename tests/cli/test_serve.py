"""`adapter serve` in its own process, and commands against it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.runner import CommandRunner
from tests.import_table import ROOT

COMMAND = [sys.executable, "-m", "cli.main"]


@contextmanager
def served(data: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """`adapter serve` on a free port, once it is ready, and the JSON that it printed."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", "--data", str(data), "--json", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        assert line, process.stderr.read() if process.stderr else ""
        yield process, json.loads(line)
    finally:
        process.kill()
        process.communicate()


def test_only_the_first_start_prints_a_token(cli: CommandRunner, tmp_path: Path) -> None:
    with served(tmp_path / "data") as (process, first):
        whoami = cli("whoami", "--json", ADAPTER_REGISTRY=first["url"], ADAPTER_TOKEN=first["token"])
        assert whoami.json["scopes"] == ["admin"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    with served(tmp_path / "data") as (_, second):
        assert second["token"] == ""
        assert cli("whoami", "--json", ADAPTER_REGISTRY=second["url"], ADAPTER_TOKEN=first["token"]).exit_code == 0


def test_push_and_pull_over_a_real_server(cli: CommandRunner, tmp_path: Path) -> None:
    with served(tmp_path / "data") as (_, result):
        admin = {"ADAPTER_REGISTRY": result["url"], "ADAPTER_TOKEN": result["token"]}
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in admin.items():
                patch.setenv(variable, value)
            cli.add_base()
            folder = cli.make_adapter("mine")
            words = ["token", "create", "ci", "--scope", "push", "--namespace", "acme", "--days", "1", "--json"]
            secret = cli(*words).json["secret"]
            cli("pull", "acme/none", tmp_path / "none", expect=4)
        trainer = {"ADAPTER_REGISTRY": result["url"], "ADAPTER_TOKEN": secret}
        pushed = cli("push", folder, "acme/support", "--json", **trainer).json
        assert pushed["version"]["created_by"] == "ci"
        assert cli("push", folder, "beta/support", "--json", expect=4, **trainer).problem["code"] == "ADAPTER_UNKNOWN"
        assert [token["name"] for token in cli("token", "list", "--json", **trainer).json["items"]] == ["ci"]
        assert cli("whoami", expect=3, **(trainer | {"ADAPTER_TOKEN": "lra_wrong"})).stderr.startswith("Error: ")
        run = subprocess.run(
            [*COMMAND, "pull", "acme/support", str(tmp_path / "served"), "--json"],
            env={**os.environ, **trainer},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert json.loads(run.stdout)["resolved"]["digest"] == pushed["version"]["digest"]
        for path in folder.iterdir():
            assert (tmp_path / "served" / path.name).read_bytes() == path.read_bytes()


def test_login_remembers_the_registry_and_its_token(cli: CommandRunner, tmp_path: Path) -> None:
    with served(tmp_path / "data") as (_, result):
        assert "You are admin" in cli("login", result["url"] + "/", stdin=result["token"] + "\n").stdout
        assert cli("whoami", "--json").json["actor"] == "admin"
        assert cli("login", result["url"], "--json", stdin="lra_wrong\n", expect=3).problem["code"] == "UNAUTHORIZED"
        assert cli("whoami", "--json").json["actor"] == "admin"
    assert "no token was given" in cli("login", "http://127.0.0.1:9", stdin="\n", expect=2).stderr


def test_a_port_in_use_is_an_error(cli: CommandRunner, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = cli("serve", "--port", port, "--data", tmp_path / "data", expect=2)
    assert f"cannot listen on 127.0.0.1 port {port}" in result.stderr


def test_migrate_upgrades_an_empty_database_and_leaves_a_current_one(cli: CommandRunner, tmp_path: Path) -> None:
    (tmp_path / "data" / "registry.db").unlink()
    first = cli("migrate", "--json").json
    assert (first["before"], bool(first["after"])) == ("", True)
    assert cli("migrate").stdout == f"The schema is at {first['after']}.\n"
