"""Which registry a command talks to, and how a login is remembered."""

from __future__ import annotations

import json
import sqlite3
import stat
from pathlib import Path

import pytest

from cli import session
from registry.errors import Invalid
from tests.cli.desk import Desk


def test_without_anything_the_embedded_registry_is_used(desk: Desk) -> None:
    assert session.target().embedded
    said = desk("whoami", "--json").json
    assert (said["actor"], said["scopes"]) == ("owner", ["admin"])


def test_a_command_on_the_embedded_registry_leaves_one_whole_file(desk: Desk, tmp_path: Path) -> None:
    desk("token", "create", "ci", "--scope", "push")
    assert [path.name for path in (tmp_path / "data").iterdir() if path.is_file()] == ["registry.db"]


@pytest.mark.usefixtures("desk")
def test_the_environment_wins_over_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    session.write_profile(
        session.LoginProfile("https://a.test", {"https://a.test": "token-a", "https://b.test": "token-b"})
    )
    assert session.target() == session.RegistryTarget("https://a.test", "token-a", str(session.profile_path()))
    monkeypatch.setenv("ADAPTER_REGISTRY", "https://b.test/")
    assert session.target() == session.RegistryTarget("https://b.test", "token-b", "ADAPTER_REGISTRY")
    monkeypatch.setenv("ADAPTER_TOKEN", "token-c")
    assert session.target().token == "token-c"


@pytest.mark.usefixtures("desk")
def test_a_token_is_never_used_for_another_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    session.write_profile(session.LoginProfile("https://a.test", {"https://a.test": "token-a"}))
    monkeypatch.setenv("ADAPTER_REGISTRY", "https://b.test")
    assert session.target().token == ""


@pytest.mark.usefixtures("desk")
def test_the_profile_is_readable_by_its_owner_alone() -> None:
    path = session.write_profile(session.LoginProfile("https://a.test", {"https://a.test": "t"}))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == ["profile.json"]
    assert session.read_profile().tokens == {"https://a.test": "t"}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"url": 1}', '{"url": "x", "tokens": []}'])
def test_a_profile_that_cannot_be_read_is_named(desk: Desk, text: str) -> None:
    path = session.profile_path()
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(Invalid, match="is not a profile"):
        session.read_profile()
    assert "is not a profile" in desk("list", expect=2).stderr


def test_a_registry_that_does_not_answer_is_for_later(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.client.transport.connection.PAUSE_SECONDS", 0.0)
    said = desk("list", "--json", expect=75, ADAPTER_REGISTRY="http://127.0.0.1:9", ADAPTER_TOKEN="t")
    assert said.stdout == ""
    assert said.problem["code"] == "SERVER_UNREACHABLE"


def test_what_is_no_url_is_bad_input(desk: Desk) -> None:
    assert "registry URL" in desk("list", expect=2, ADAPTER_REGISTRY="localhost", ADAPTER_TOKEN="t").stderr


def test_an_old_schema_is_refused_with_the_way_out(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "data" / "registry.db"
    path.unlink()
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE adapter (id INTEGER)")
    said = desk("list", expect=5)
    assert "adapter migrate" in said.stderr


@pytest.mark.parametrize(
    ("url", "readable"),
    [("http://registry.test", True), ("https://registry.test", False), ("http://127.0.0.1:8080", False),
     ("http://[::1]:8080", False), ("http://localhost", False), (session.EMBEDDED_URL, False)],
)  # fmt: skip
def test_a_token_that_goes_over_a_network_in_the_clear_is_told_of(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, url: str, readable: bool
) -> None:
    assert session.RegistryTarget(url, "t", "").readable is readable
    if readable:
        monkeypatch.setenv("ADAPTER_REGISTRY", "http://registry.invalid")
        assert "use https" in desk("doctor", expect=75).stdout


def test_the_folder_of_a_new_registry_is_for_its_owner_alone(desk: Desk, tmp_path: Path) -> None:
    desk("list", REGISTRY_DATA=str(tmp_path / "fresh"))
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o700


def test_doctor_names_what_is_wrong_and_ends_with_its_code(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = {look["about"]: look for look in desk("doctor", "--json").json["looks"]}
    assert looks["server"]["state"] == "ok"
    monkeypatch.setattr("registry.client.transport.connection.PAUSE_SECONDS", 0.0)
    said = desk("doctor", "--json", expect=75, ADAPTER_REGISTRY="http://127.0.0.1:9", ADAPTER_TOKEN="t")
    assert "cannot be reached" in json.dumps(said.json)
