"""`adapter serve` in its own process, and commands against it."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from cli.server import serve
from registry.server.access.one_time_links import OneTimeLinks
from registry.server.settings import Settings
from tests.access.identity import ISSUER, Provider
from tests.cli.runner import COMMAND, CommandRunner, served
from tests.import_table import ROOT


def test_push_and_pull_over_a_real_server(
    cli: CommandRunner, server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTER_REGISTRY", server["url"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPTER_TOKEN", server["token"])
        cli.add_base()
        folder = cli.make_adapter("mine")
        words = ["token", "create", "ci", "--scope", "push", "--namespace", "acme", "--expires", "1d", "--json"]
        secret = cli(*words).json["secret"]
        cli("pull", "acme/none", tmp_path / "none", expect=4)
    monkeypatch.setenv("ADAPTER_TOKEN", secret)
    pushed = cli("push", folder, "acme/support", "--json").json
    assert pushed["version"]["created_by"] == "token:ci"
    assert cli("push", folder, "beta/support", "--json", expect=4).problem["code"] == "ADAPTER_UNKNOWN"
    assert [token["name"] for token in cli("token", "list", "--json").json["items"]] == ["ci"]
    assert cli("whoami", expect=3, ADAPTER_TOKEN="lra_wrong").stderr.startswith("Error: ")
    command = [*COMMAND, "pull", "acme/support", str(tmp_path / "served"), "--json"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["resolved"]["digest"] == pushed["version"]["digest"]
    for path in folder.iterdir():
        assert (tmp_path / "served" / path.name).read_bytes() == path.read_bytes()


def test_a_lost_token_of_the_administrator_is_replaced_beside_the_running_server(
    cli: CommandRunner, tmp_path: Path
) -> None:
    """As docs/deploy.md says: whoever can read the server's settings and data is the owner."""
    with served(tmp_path / "other") as (_, printed):
        cli("login", printed["url"], stdin=printed["token"] + "\n")
        (tmp_path / "server.toml").write_text(f"data = '{tmp_path / 'other'}'\n")
        words = ["token", "create", "admin-2", "--scope", "admin", "--json"]
        config = str(tmp_path / "server.toml")
        created = cli(*words, ADAPTER_REGISTRY="embedded", REGISTRY_DATA="", REGISTRY_CONFIG=config)
        secret = created.json["secret"]
        lost = cli("token", "list", "--json", ADAPTER_TOKEN=secret).json["items"][-1]["id"]
        cli("token", "revoke", "--yes", lost, ADAPTER_TOKEN=secret)
        assert cli("whoami", "--json", expect=3).problem["code"] == "UNAUTHORIZED"
        events: set[tuple[str, str]] = set()
        while ("token.revoke", "token:admin-2") not in events:  # a busy server numbers it later
            items = cli("audit", "log", "--json", ADAPTER_TOKEN=secret).json["items"]
            events = {(event["action"], event["actor"]) for event in items}
        assert ("token.issue", "owner") in events


def test_login_remembers_the_registry_and_its_token(cli: CommandRunner, server: dict[str, str]) -> None:
    assert "You are token:admin" in cli("login", server["url"] + "/", stdin=server["token"] + "\n").stdout
    assert cli("whoami", "--json").json["actor"] == "token:admin"
    assert cli("login", server["url"], "--json", stdin="lra_wrong\n", expect=3).problem["code"] == "UNAUTHORIZED"
    assert cli("whoami", "--json").json["actor"] == "token:admin"
    assert "no token was given" in cli("login", "http://127.0.0.1:9", stdin="\n", expect=2).stderr
    assert "does not begin with http" in cli("login", "notaurl", stdin="\n", expect=2).stderr
    assert "it holds a space" in cli("list", expect=2, ADAPTER_REGISTRY="http://a b/").stderr


def test_serve_prints_a_link_that_signs_in_to_the_pages_once(server: dict[str, str]) -> None:
    with httpx.Client() as browser:
        link = server["sign_in_url"]
        assert link.startswith(f"{server['url']}/sign-in/")
        assert browser.get(link).headers["location"] == "/"
        assert "Sign out" in browser.get(server["url"] + "/search").text
        assert httpx.get(link).status_code == 403


@pytest.mark.security
@pytest.mark.parametrize("is_terminal", [False, True])
def test_the_link_of_an_administrator_is_printed_on_terminals_and_not_in_logs(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    services = SimpleNamespace(
        settings=Settings(database_url="sqlite:///x", blobs="file:///x"), sign_in_links=OneTimeLinks()
    )
    listener = SimpleNamespace(getsockname=lambda: ("127.0.0.1", 8080))
    for has_tokens in (False, True):
        serve._announce(listener, services, "", is_document=False, has_tokens=has_tokens)  # type: ignore[arg-type]
        printed = capsys.readouterr().out
        assert ("/sign-in/" in printed) is is_terminal
        assert ("adapter token create NAME --scope admin" in printed) is has_tokens


def test_a_port_in_use_is_an_error(cli: CommandRunner, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = cli("serve", "--port", port, "--data", tmp_path / "data", expect=2)
    assert f"cannot listen on 127.0.0.1 port {port}" in result.stderr


def test_migrate_upgrades_an_empty_database_and_leaves_a_current_one(cli: CommandRunner, tmp_path: Path) -> None:
    (tmp_path / "data" / "registry.db").unlink()
    first = cli("migrate", "--json").json
    assert (first["before"], bool(first["after"])) == ("", True)
    assert cli("migrate").stdout == f"The schema is at {first['after']}.\n"


@pytest.mark.security
def test_the_first_token_comes_from_a_file_and_not_from_the_log(cli: CommandRunner, tmp_path: Path) -> None:
    file = tmp_path / "admin.token"
    with served(tmp_path / "data", "--admin-token-file", str(file)) as (process, server):
        assert server["token"] == ""
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        who = cli("whoami", "--json", ADAPTER_REGISTRY=server["url"], ADAPTER_TOKEN=file.read_text().strip())
        assert who.json["scopes"] == ["admin"]
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
        assert file.read_text().strip() not in output + errors
    written = file.read_text()
    with served(tmp_path / "data", "--admin-token-file", str(file)):
        assert file.read_text() == written
    file.write_text("lra_wrong")
    words = ("serve", "--port", 0, "--data", tmp_path / "other", "--admin-token-file", file)
    assert "does not contain a token" in cli(*words, expect=2).stderr


@pytest.mark.security
def test_the_first_token_comes_from_its_hash(cli: CommandRunner, tmp_path: Path) -> None:
    generated = cli("token", "generate", "--json").json
    with served(tmp_path / "data", REGISTRY_ADMIN_TOKEN_SHA256=generated["sha256"]) as (_, server):
        assert server["token"] == ""
        who = cli("whoami", "--json", ADAPTER_REGISTRY=server["url"], ADAPTER_TOKEN=generated["secret"])
        assert who.json["scopes"] == ["admin"]
    words = ("serve", "--port", 0, "--data", tmp_path / "other")
    assert "is not a SHA-256" in cli(*words, expect=2, REGISTRY_ADMIN_TOKEN_SHA256=generated["secret"]).stderr


def test_an_unknown_setting_stops_the_start_and_names_the_nearest(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["serve", "--port", "0"], ["migrate"], ["list"]):
        error = cli(*words, expect=2, REGISTRY_BLOB="s3://adapters").stderr
        assert "REGISTRY_BLOB is not a setting" in error
        assert "the nearest setting is REGISTRY_BLOBS" in error
    assert "settings.md" in cli("list", expect=2, REGISTRY_XYZ="").stderr
    kubernetes = {
        "REGISTRY_SERVICE_HOST": "10.0.0.1", "REGISTRY_SERVICE_PORT_HTTP": "80", "REGISTRY_PORT": "tcp://10.0.0.1:80",
        "REGISTRY_PORT_80_TCP_ADDR": "10.0.0.1",
    }  # fmt: skip
    for name, value in kubernetes.items():
        monkeypatch.setenv(name, value)
    cli("list")


def test_a_database_that_cannot_be_used_stops_the_start_with_the_reason(cli: CommandRunner) -> None:
    for words in (["serve", "--port", "0"], ["migrate"], ["list"]):
        error = cli(*words, expect=75, REGISTRY_DATABASE_URL="postgresql://ann:sesame@127.0.0.1:9/absent").stderr
        assert "127.0.0.1:9/absent" in error
        assert "onnection refused" in error
        assert "check REGISTRY_DATABASE_URL" in error
        assert "sesame" not in error


class _StoreWithoutBucket(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<Error><Code>NoSuchBucket</Code><Message>no</Message></Error>"
        self.send_response(404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_bucket_that_does_not_exist_stops_the_start(
    cli: CommandRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    store = HTTPServer(("127.0.0.1", 0), _StoreWithoutBucket)
    threading.Thread(target=store.serve_forever, daemon=True).start()
    settings = {"REGISTRY_BLOBS": "s3://absent/x", "REGISTRY_S3_ENDPOINT": f"http://127.0.0.1:{store.server_port}"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    error = cli("serve", "--port", 0, "--data", tmp_path / "data", expect=2).stderr
    assert "REGISTRY_BLOBS: s3://absent/x: " in error
    assert "create it first" in error
    store.shutdown()
    store.server_close()
    with served(tmp_path / "data", **settings) as (process, server):  # away, but not wrong
        assert server["url"]
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert "s3://absent/x does not respond, and is tried again: " in errors


def test_missing_credentials_of_the_store_stop_the_start_and_are_named(
    cli: CommandRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    settings = {"REGISTRY_BLOBS": "s3://adapters/x", "REGISTRY_S3_ENDPOINT": "http://127.0.0.1:9"}
    serve = ("serve", "--port", 0, "--data", tmp_path / "data")
    for environment in ({}, {"AWS_ACCESS_KEY_ID": "key"}, {"AWS_PROFILE": "absent"}):
        error = cli(*serve, expect=2, **settings, **environment).stderr
        assert "REGISTRY_BLOBS: " in error
        assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in error
        assert "REGISTRY_S3_ENDPOINT" not in error


def test_sighup_reads_the_issuers_again(cli: CommandRunner, tmp_path: Path) -> None:
    provider = Provider(tmp_path)
    issuers = Path(provider.settings)
    text = issuers.read_text()
    issuers.write_text("")
    rule = ("publisher", "add", "acme/support", "--issuer", ISSUER, "--claim", "repository=acme/train")

    def exchange(expect: int = 0) -> None:
        cli("token", "exchange", "--adapter", "acme/support", stdin=provider.sign(), expect=expect)

    with served(tmp_path / "data", REGISTRY_ISSUERS=str(issuers)) as (process, server):
        environment = {"ADAPTER_REGISTRY": server["url"], "ADAPTER_TOKEN": server["token"]}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            cli(*rule)
            exchange(expect=3)
            for content, message in (
                (text, "read the issuers and the audit key again"),
                ("x", "the former settings stay"),
            ):
                issuers.write_text(content)
                process.send_signal(signal.SIGHUP)
                assert process.stderr is not None
                assert any(message in line for line in iter(process.stderr.readline, ""))
                exchange()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
