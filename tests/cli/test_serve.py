"""A real server in a process of its own, and real commands against it."""

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

from tests.cli.desk import Desk
from tests.import_table import ROOT

COMMAND = [sys.executable, "-m", "cli.main"]


@contextmanager
def served(data: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """`adapter serve` on a free port, ready; and what it said when it was."""
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


def test_the_first_start_gives_a_token_that_works_and_no_other_start_does(desk: Desk, tmp_path: Path) -> None:
    with served(tmp_path / "data") as (process, first):
        whoami = desk("whoami", "--json", ADAPTER_REGISTRY=first["url"], ADAPTER_TOKEN=first["token"])
        assert whoami.json["scopes"] == ["admin"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    with served(tmp_path / "data") as (_, second):
        assert second["token"] == ""
        assert desk("whoami", "--json", ADAPTER_REGISTRY=second["url"], ADAPTER_TOKEN=first["token"]).exit_code == 0


def test_push_and_pull_go_through_a_real_server_and_its_tokens(desk: Desk, tmp_path: Path) -> None:
    with served(tmp_path / "data") as (_, said):
        admin = {"ADAPTER_REGISTRY": said["url"], "ADAPTER_TOKEN": said["token"]}
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in admin.items():
                patch.setenv(variable, value)
            desk.base()
            folder = desk.adapter("mine")
            words = ["token", "create", "ci", "--scope", "push", "--namespace", "acme", "--days", "1", "--json"]
            secret = desk(*words).json["secret"]
            desk("pull", "acme/none", tmp_path / "none", expect=4)
        trainer = {"ADAPTER_REGISTRY": said["url"], "ADAPTER_TOKEN": secret}
        pushed = desk("push", folder, "acme/support", "--json", **trainer).json
        assert pushed["version"]["created_by"] == "ci"
        assert desk("push", folder, "beta/support", "--json", expect=4, **trainer).problem["code"] == "ADAPTER_UNKNOWN"
        assert [token["name"] for token in desk("token", "list", "--json", **trainer).json["items"]] == ["ci"]
        assert desk("whoami", expect=3, **(trainer | {"ADAPTER_TOKEN": "lra_wrong"})).stderr.startswith("Error: ")
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


def test_login_remembers_the_registry_and_its_token(desk: Desk, tmp_path: Path) -> None:
    with served(tmp_path / "data") as (_, said):
        assert "You are admin" in desk("login", said["url"] + "/", stdin=said["token"] + "\n").stdout
        assert desk("whoami", "--json").json["actor"] == "admin"
        assert desk("login", said["url"], "--json", stdin="lra_wrong\n", expect=3).problem["code"] == "UNAUTHORIZED"
        assert desk("whoami", "--json").json["actor"] == "admin"
    assert "no token was given" in desk("login", "http://127.0.0.1:9", stdin="\n", expect=2).stderr


def test_a_port_that_is_taken_is_a_sentence(desk: Desk, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = desk("serve", "--port", port, "--data", tmp_path / "data", expect=2)
    assert f"cannot listen on 127.0.0.1 port {port}" in said.stderr


def test_migrate_brings_an_empty_database_up_and_leaves_a_new_one_alone(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "data" / "registry.db").unlink()
    first = desk("migrate", "--json").json
    assert (first["before"], bool(first["after"])) == ("", True)
    assert desk("migrate").stdout == f"The schema is at {first['after']}.\n"
