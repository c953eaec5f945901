"""Settings from variables, from a file and from files of secrets, and what `adapter config show` tells of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from registry.errors import Invalid
from registry.server.settings import SECRETS, URLS, Settings, read_sources
from registry.server.storage.s3.bucket import Bucket
from tests.cli.conftest import command_runner

URL = "postgresql+psycopg://app:s3@cret@db.example.org/registry?password=s3cret"


def write(folder: Path, text: str) -> dict[str, str]:
    (folder / "server.toml").write_text(text)
    return {"REGISTRY_CONFIG": str(folder / "server.toml")}


def test_a_variable_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    env = write(tmp_path, 'link_seconds = 600\nlog = "json"\n') | {"REGISTRY_LOG": "text"}
    settings = Settings.from_env(env)
    assert (settings.link_seconds, settings.log, settings.pages) == (600, "text", "on")
    assert read_sources(env)["link_seconds"].origin == f"{tmp_path}/server.toml: link_seconds"


def test_drafts_may_last_as_long_as_a_push_and_a_longer_push_needs_no_other_setting() -> None:
    both = {"REGISTRY_DRAFT_SECONDS": "6", "REGISTRY_PUSH_HOLD_SECONDS": "6"}
    assert Settings.from_env(both).draft_seconds == 6
    assert Settings.from_env({"REGISTRY_PUSH_HOLD_SECONDS": "999999"}).push_hold_seconds == 999999


def test_the_url_of_the_database_comes_from_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"{URL}\n")
    for env in ({"REGISTRY_DATABASE_URL_FILE": str(tmp_path / "url")},
                write(tmp_path, f"database_url_file = '{tmp_path}/url'")):  # fmt: skip
        assert Settings.from_env(env).database_url == URL


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("link_second = 6", "link_second is not a setting"),
        ("link_seconds = 'soon'", "'soon' is not a whole number"),
        ("draft_seconds = 86399", r"draft_seconds: 86399 is below push_hold_seconds \(86400\)"),
        ("draft_seconds = 6\npush_hold_seconds = 7", r"draft_seconds: 6 is below push_hold_seconds \(7\)"),
        ("pages = 'maybe'", "'maybe' is not one of on, private, off"),
        ("pages = true", "pages is neither a text nor a whole number"),
        ("trusted_proxies = '10.0.0.1/8'", "10.0.0.1/8 has host bits set"),
        ("webhook_private = 'all'", "'all' does not appear to be"),
        ("log_file = '/x'", "log_file is not a setting"),
        ("database_url_file = '/none'", "/none cannot be read"),
        ("= 1", "is not TOML"),
    ],
)
def test_what_a_file_may_not_have_is_named(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(Invalid, match=part) as caught:
        Settings.from_env(write(tmp_path, text))
    assert str(tmp_path) in caught.value.detail


@pytest.mark.security
def test_config_show_hides_passwords_and_names_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = command_runner(tmp_path, monkeypatch)
    (tmp_path / "server.toml").write_text(f"database_url = '{URL}'\nlink_seconds = 600\n")
    monkeypatch.setenv("REGISTRY_LOG", "json")
    for form in ("wide", "json", "csv"):
        text = cli("config", "show", "--config", tmp_path / "server.toml", "-o", form).stdout
        assert "cret" not in text
        assert "postgresql+psycopg://app:…@db.example.org/registry?…" in text
    shown = cli("config", "show", "--config", tmp_path / "server.toml", "--json").json["items"]
    sources = {row["name"]: (row["value"], row["source"]) for row in shown}
    assert sources["link_seconds"] == ("600", f"{tmp_path}/server.toml: link_seconds")
    assert (sources["log"], sources["pages"]) == (("json", "REGISTRY_LOG"), ("on", "default"))


@pytest.mark.security
@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://app:s?cret@127.0.0.1:1/x", "postgresql+psycopg://app:…@127.0.0.1:1/x"),
        ("postgresql+psycopg://127.0.0.1:1/x?user=app&password=s-cret", "postgresql+psycopg://127.0.0.1:1/x?…"),
        ("postgresql+psycopg://app:s-cret@127.0.0.1:port/x", "REGISTRY_DATABASE_URL is not a URL of a database"),
    ],
)
def test_a_start_that_fails_and_config_show_print_no_password(
    url: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = command_runner(tmp_path, monkeypatch)
    monkeypatch.setenv("REGISTRY_DATABASE_URL", url)
    failed = cli("migrate", expect=2 if "not a URL" in shown else 75)
    assert shown in failed.stderr
    assert "cret" not in failed.stderr + cli("config", "show").stdout


@pytest.mark.security
@pytest.mark.parametrize("setting", sorted(URLS))
@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:s-cret@bucket/prefix",
        "s3://KEY:12/s-cret@bucket",
        "https://s-cret@host",
        "file://app:s-cret@localhost/x",
    ],
)
def test_a_url_with_a_password_stops_the_start_without_printing_it(
    setting: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = command_runner(tmp_path, monkeypatch)
    monkeypatch.setenv(f"REGISTRY_{setting.upper()}", url)
    for words in (("serve", "--port", 0), ("config", "show"), ("migrate",)):
        failed = cli(*words, expect=2)
        assert f"REGISTRY_{setting.upper()} holds a user name or a password" in failed.stderr
        assert "s-cret" not in failed.stdout + failed.stderr


@pytest.mark.security
@pytest.mark.parametrize("password", ["s-cret", "s cret", "s/cret", "s@cret", "s:cret?x=cret#cret", "s\ncret"])
def test_no_password_is_in_the_text_of_settings(password: str) -> None:
    url = f"postgresql://app:{password}@db/registry?password={password}"
    urls: dict[str, Any] = dict.fromkeys((*URLS, *SECRETS), url)
    assert "cret" not in repr(Settings(**urls))
    with pytest.raises(Invalid) as caught:
        Bucket(f"s3://KEY:{password}@bucket/prefix")
    assert "cret" not in str(caught.value)


@pytest.mark.security
@pytest.mark.parametrize(
    "text",
    [
        "postgresql://db:5432/registry?password=p@s-cret",
        "postgresql://db/registry?user=app:x&password=s-cret@s-cret",
        "postgresql://[::1]:5432/registry?password=p@s-cret",
        "postgresql:app:s-cret@db/registry",
        "postgresql//app:s-cret@db/registry",
        "host=db user=app password = s-cret",
    ],
)
def test_no_password_is_shown_of_a_setting_that_is_no_good_url(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = command_runner(tmp_path, monkeypatch)
    monkeypatch.setenv("REGISTRY_DATABASE_URL", text)
    shown = cli("config", "show").stdout
    assert "database_url" in shown
    assert "s-cret" not in shown + repr(Settings(database_url=text))
