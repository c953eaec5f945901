"""Which registry a command talks to, and the profile of `adapter login`."""

from __future__ import annotations

import json
import sqlite3
import stat
import threading
from dataclasses import replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cli import doctor
from cli.console import output, session
from registry import __version__
from registry.api.maintenance import Health
from registry.client import registries
from registry.client.core import Versions
from registry.client.transport import HttpResponse, TransportError
from registry.client.transport.connection import Connection
from registry.client.transport.http_transport import HttpTransport
from registry.client.transport.retries import ATTEMPTS_LIMIT, PATIENT_ATTEMPTS_LIMIT
from registry.errors import Invalid, NotFound, Unauthenticated
from registry.sdk import AdapterRegistry
from tests.cli.runner import CommandRunner


def test_the_embedded_registry_is_the_default(cli: CommandRunner) -> None:
    assert registries.target().embedded
    result = cli("whoami", "--json").json
    assert (result["actor"], result["scopes"]) == ("owner", ["admin"])


def test_the_embedded_registry_leaves_one_database_file(cli: CommandRunner, tmp_path: Path) -> None:
    cli("token", "create", "ci", "--scope", "push")
    assert [path.name for path in (tmp_path / "data").iterdir() if path.is_file()] == ["registry.db"]


@pytest.mark.usefixtures("cli")
def test_the_environment_wins_over_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    registries.write_profile(
        registries.LoginProfile("https://a.test", {"https://a.test": "token-a", "https://b.test": "token-b"})
    )
    assert registries.target() == registries.RegistryTarget("https://a.test", "token-a", str(registries.profile_path()))
    monkeypatch.setenv("ADAPTER_REGISTRY", "https://b.test/")
    assert registries.target() == registries.RegistryTarget("https://b.test", "token-b", "ADAPTER_REGISTRY")
    monkeypatch.setenv("ADAPTER_TOKEN", "token-c")
    assert registries.target().token == "token-c"


@pytest.mark.usefixtures("cli")
def test_a_token_is_never_used_for_another_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    registries.write_profile(registries.LoginProfile("https://a.test", {"https://a.test": "token-a"}))
    monkeypatch.setenv("ADAPTER_REGISTRY", "https://b.test")
    assert registries.target().token == ""


@pytest.mark.usefixtures("cli")
def test_only_the_owner_can_read_the_profile() -> None:
    path = registries.write_profile(registries.LoginProfile("https://a.test", {"https://a.test": "t"}))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == ["profile.json"]
    assert registries.read_profile().tokens == {"https://a.test": "t"}


@pytest.mark.usefixtures("cli")
def test_a_context_has_a_url_and_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADAPTER_CONFIG", str(tmp_path / "own" / "profile.json"))
    contexts = {
        "ci": registries.Context("https://a.test", "token-ci"),
        "prod": registries.Context("https://c.test", "t"),
    }
    registries.write_profile(
        registries.LoginProfile("https://a.test", {"https://a.test": "token-a"}, (), contexts, "ci")
    )
    assert registries.target().token == "token-ci"
    assert registries.replace_token("rotated")
    assert registries.read_profile().contexts["ci"].token == "rotated"
    assert registries.read_profile().tokens == {"https://a.test": "token-a"}, "the login keeps its own"
    monkeypatch.setenv("ADAPTER_CONTEXT", "prod")
    assert registries.target() == registries.RegistryTarget("https://c.test", "t", "ADAPTER_CONTEXT", context="prod")
    monkeypatch.setenv("ADAPTER_REGISTRY", "https://b.test")
    assert (registries.target().url, registries.target().token) == ("https://b.test", "")
    monkeypatch.delenv("ADAPTER_REGISTRY")
    monkeypatch.setenv("ADAPTER_CONTEXT", "nowhere")
    with pytest.raises(NotFound, match="there are: ci, prod"):
        registries.target()


def test_a_context_can_stand_for_the_embedded_registry(cli: CommandRunner) -> None:
    assert "local: the embedded registry" in cli("context", "add", "local", "embedded").stdout
    registries.write_profile(
        replace(registries.read_profile(), url="https://b.test", tokens={"https://b.test": "secret"})
    )
    assert "Commands talk to the embedded registry." in cli("context", "use", "local").stdout
    assert (registries.target().embedded, registries.target().token) == (True, "")
    assert cli("list", "--json").json["items"] == []


def test_contexts_are_listed_used_and_removed_and_a_logout_forgets_a_token(cli: CommandRunner) -> None:
    contexts = {
        "ci": registries.Context("https://a.test", "secret-1"),
        "prod": registries.Context("https://c.test", "secret-2"),
    }
    registries.write_profile(registries.LoginProfile("https://b.test", {"https://b.test": "secret-3"}, (), contexts))
    cli("context", "use", "prod")
    listed = cli("context", "list")
    assert [line.split() for line in listed.stdout.splitlines()[1:]] == [
        ["ci", "https://a.test", "-"], ["prod", "https://c.test", "used"],
    ]  # fmt: skip
    assert "secret" not in listed.stdout + cli("context", "list", "--json").stdout
    assert "there are: ci, prod" in cli("context", "use", "nowhere", expect=4).stderr
    assert "answer yes, or pass --yes" in cli("context", "delete", "prod", expect=2).stderr
    cli("context", "delete", "--yes", "prod")
    assert registries.read_profile().context == ""
    cli("context", "use", "ci")
    assert "The context ci is still used, with its own token." in cli("logout").stdout
    profile = registries.read_profile()
    assert (profile.url, profile.tokens, list(profile.contexts)) == ("", {}, ["ci"])
    assert cli("logout", expect=4).stdout == ""
    cli("context", "use")
    assert registries.target().embedded


@pytest.mark.parametrize("text", ["", "[]", "{", '{"url": 1}', '{"url": "x", "tokens": []}'])
def test_an_unreadable_profile_is_an_error_with_its_path(cli: CommandRunner, text: str) -> None:
    path = registries.profile_path()
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(Invalid, match="is not a profile"):
        registries.read_profile()
    assert "is not a profile" in cli("list", expect=2).stderr


def test_an_unreachable_registry_exits_75(cli: CommandRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.client.transport.retries.PAUSE_SECONDS", 0.0)
    result = cli("list", "--json", expect=75, ADAPTER_REGISTRY="http://127.0.0.1:9", ADAPTER_TOKEN="t")
    assert result.stdout == ""
    assert result.problem["code"] == "SERVER_UNREACHABLE"


def test_a_note_on_a_terminal_replaces_the_progress_line(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    monkeypatch.setattr(session, "sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True)))
    monkeypatch.setattr("click.echo", lambda text, **_: printed.append(output.unstyled(text)))
    client = Versions("http://127.0.0.1:9")
    session.configure(client)
    client.connection.wait(0.0, "trying again")
    assert printed[0] == output.CLEAR_LINE
    assert "trying again" in printed[1]


def test_an_invalid_url_is_bad_input(cli: CommandRunner) -> None:
    assert "registry URL" in cli("list", expect=2, ADAPTER_REGISTRY="localhost", ADAPTER_TOKEN="t").stderr


@pytest.mark.security
@pytest.mark.parametrize("token", ["lra_one\nlra_two", "lra_one lra_two", "lra_\u00e9"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_printed(cli: CommandRunner, token: str) -> None:
    stderr = cli("list", expect=2, ADAPTER_REGISTRY="http://127.0.0.1:9", ADAPTER_TOKEN=token).stderr
    assert "set ADAPTER_TOKEN to the one line of" in stderr
    assert "lra_" not in stderr


def test_a_login_without_a_token_says_where_it_is_read(cli: CommandRunner) -> None:
    result = cli("login", "http://127.0.0.1:9", expect=2, stdin="", ADAPTER_TOKEN="")
    assert "Next: set ADAPTER_TOKEN or pipe the token" in result.stderr


def test_an_old_schema_is_refused_with_the_next_step(cli: CommandRunner, tmp_path: Path) -> None:
    path = tmp_path / "data" / "registry.db"
    path.unlink()
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE adapter (id INTEGER)")
    result = cli("list", expect=5)
    assert "adapter migrate" in result.stderr


@pytest.mark.parametrize(
    ("url", "unencrypted"),
    [("http://registry.test", True), ("https://registry.test", False), ("http://127.0.0.1:8080", False),
     ("http://[::1]:8080", False), ("http://localhost", False), (registries.EMBEDDED_URL, False)],
)  # fmt: skip
def test_an_unencrypted_connection_is_noted(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch, url: str, unencrypted: bool
) -> None:
    assert registries.RegistryTarget(url, "t", "").unencrypted is unencrypted
    if unencrypted:
        monkeypatch.setenv("ADAPTER_REGISTRY", "http://registry.invalid")
        assert "use https" in cli("doctor", expect=75).stdout


def test_only_the_owner_can_read_a_new_data_folder(cli: CommandRunner, tmp_path: Path) -> None:
    cli("list", REGISTRY_DATA=str(tmp_path / "fresh"))
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o700


def test_doctor_shows_what_is_wrong_and_exits_with_its_code(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = {check["about"]: check for check in cli("doctor", "--json").json["checks"]}
    assert checks["server"]["state"] == "ok"
    assert checks["server"]["message"].startswith("0.")
    assert checks["registry"]["message"].startswith("embedded: your data folder")
    monkeypatch.setattr("registry.client.transport.retries.PAUSE_SECONDS", 0.0)
    result = cli("doctor", "--json", expect=75, ADAPTER_REGISTRY="http://127.0.0.1:9", ADAPTER_TOKEN="t")
    assert "is unreachable" in json.dumps(result.json)
    assert "diagnoses it" not in json.dumps(result.json)
    rows = {check["about"]: check for check in result.json["checks"]}
    assert (rows["token"]["message"], rows["token"]["exit_code"]) == ("fails for the same reason", 75)


class _Unavailable(BaseHTTPRequestHandler):
    """A registry whose database is away. Keeps the paths that were requested."""

    paths: list[str]

    def do_GET(self) -> None:
        self.paths.append(self.path.partition("?")[0])
        body = json.dumps({"title": "t", "code": "DATABASE_UNAVAILABLE", "detail": "the database does not respond"})
        self.send_response(503)
        self.send_header("Content-Type", "application/problem+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_doctor_names_the_options_of_a_store_in_one_line() -> None:
    health = Health(status="ok", version=__version__, schema_revision="1", database="sqlite", blobs="s3",
                    capabilities={"ranges": True, "parts": True, "copies": False})  # fmt: skip
    lines = [diagnosis.message for diagnosis in doctor._server(cast(Any, SimpleNamespace(health=lambda **_: health)))]
    assert lines[1:] == ["has parts, ranges; lacks copies: all bytes pass through the server"]


def test_doctor_reports_an_outage_and_does_not_wait_for_its_end(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.client.transport.retries.PAUSE_SECONDS", 0.0)
    paths: list[str] = []
    monkeypatch.setattr(_Unavailable, "paths", paths, raising=False)
    away = HTTPServer(("127.0.0.1", 0), _Unavailable)
    threading.Thread(target=away.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{away.server_port}"
    result = cli("doctor", "--json", expect=75, ADAPTER_REGISTRY=url, ADAPTER_TOKEN="t")
    away.shutdown()
    away.server_close()
    assert paths == ["/api/v1/health", "/api/v1/whoami"]
    checks = {check["about"]: check for check in result.json["checks"]}
    assert [checks[about]["state"] for about in ("server", "token")] == ["wrong", "wrong"]
    assert "the database does not respond" in checks["server"]["message"]
    assert checks["token"]["message"] == "fails for the same reason", "it is said once"


@pytest.mark.security
def test_a_login_over_plain_http_to_another_machine_needs_insecure(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ADAPTER_INSECURE", raising=False)
    sent: list[tuple[str, str]] = []

    def respond(connection: Connection, _method: str, path: str, *_: object, **__: object) -> HttpResponse:
        sent.append((connection.url, path))
        who = {"actor": "ann", "token_id": "tok_1", "scopes": ["pull"], "namespaces": ["*"]}
        return HttpResponse(connection.url, 200, Message(), json.dumps(who).encode())

    monkeypatch.setattr(Connection, "send", respond)
    url = "http://93.184.216.34:8000"
    refused = cli("login", url, stdin="secret\n", expect=2)
    assert "adapter login --insecure" in refused.stderr
    assert sent == []
    cli("login", url, "--insecure", stdin="secret\n")
    assert cli("whoami", "--json").json["actor"] == "ann"
    assert len(sent) == 2
    registries.write_profile(registries.read_profile().with_token("http://93.184.216.35", "t", insecure=False))
    cli("whoami", expect=2)
    registries.write_profile(registries.read_profile().with_token(url, "t", insecure=False))
    cli("whoami", expect=2)
    assert len(sent) == 2


@pytest.mark.parametrize(
    ("line", "waits"),
    [
        *((line, True) for line in (
            "push {adapter} acme/support", "push {adapter} acme/support --wait --alias prod",
            "push-all {parent} acme --wait", "pull acme/support {folder}/new", "cat acme/support adapter_config.json",
            "pull-all tiny-llama {folder}/all",
            "export tiny-llama {folder}/export",
            "convert acme/support --format plain", "smoke-test acme/support --wait", "smoke-test --campaign c1 --wait",
            "smoke-test --all --base tiny-llama --wait", "merge acme/a acme/b --into acme/c --wait",
        )),
        *((line, False) for line in (
            "list", "show acme/support", "promote acme/support@1 prod", "job list", "smoke-test acme/support",
            "smoke-test --all --base tiny-llama", "merge acme/a acme/b --into acme/c",
        )),
    ],
)  # fmt: skip
def test_a_command_that_pushes_pulls_or_waits_repeats_requests_while_a_registry_that_it_has_seen_restarts(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch, line: str, waits: bool
) -> None:
    urls: list[str] = []
    url = "http://127.0.0.1:9"

    def refuse(_transport: HttpTransport, _method: str, url: str, *_: object, **__: object) -> None:
        urls.append(url)
        raise TransportError("Connection refused", url, broke=True)

    monkeypatch.setattr(HttpTransport, "open", refuse)
    monkeypatch.setattr("registry.client.transport.retries.PAUSE_SECONDS", 0.0)
    adapter = cli.make_adapter("support")
    words = line.format(adapter=adapter, parent=adapter.parent, folder=cli.folder).split()
    monkeypatch.setenv("ADAPTER_REGISTRY", url)
    monkeypatch.setenv("ADAPTER_TOKEN", "t")
    assert "trying again for " not in cli(*words, expect=75).stderr, "this URL may be wrong"
    assert len(urls) == ATTEMPTS_LIMIT
    urls.clear()
    session.trusted_checkpoints().trust(Versions(url), ("key",), "note")
    notes = cli(*words, expect=75).stderr
    assert len(urls) == (PATIENT_ATTEMPTS_LIMIT if waits else ATTEMPTS_LIMIT)
    assert ("trying again for " in notes) == waits


@pytest.mark.usefixtures("cli")
def test_the_library_uses_the_login_and_the_contexts(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed in, `AdapterRegistry()` said that no registry is set, and with a URL that it has no token."""
    login = registries.LoginProfile().with_token(server["url"], server["token"], insecure=False)
    team, local = registries.Context(server["url"], server["token"]), registries.Context("embedded", "")
    registries.write_profile(replace(login, contexts={"team": team, "local": local}))

    def actor_of(*arguments: str) -> str:
        with AdapterRegistry(*arguments) as registry:
            return registry.client.whoami().actor

    actor = actor_of()
    assert actor_of(server["url"] + "/") == actor_of("team") == actor
    assert registries.named("https://other.test").token == "", "a token is for its own registry"
    with pytest.raises(Unauthenticated):
        actor_of(server["url"], "adr_wrong")
    with pytest.raises(NotFound, match="there is no context 'nosuch'; there are: local, team"):
        AdapterRegistry("nosuch")
    assert actor_of("local") == actor_of("embedded") == "owner" != actor
    monkeypatch.setenv("ADAPTER_CONTEXT", "local")
    assert actor_of() == "owner"
    monkeypatch.setenv("ADAPTER_CONTEXT", "team")
    assert actor_of() == actor
    monkeypatch.setenv("ADAPTER_REGISTRY", "embedded")
    assert actor_of() == "owner"
