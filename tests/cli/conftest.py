"""Each test has its own data, profile and cache folders, and no registry in the environment."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.runner import CommandRunner, served


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migrated_sqlite: Path) -> CommandRunner:
    for variable in ("ADAPTER_REGISTRY", "ADAPTER_TOKEN", "REGISTRY_DATABASE_URL", "REGISTRY_BLOBS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("REGISTRY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    shutil.copyfile(migrated_sqlite, tmp_path / "data" / "registry.db")
    return CommandRunner(tmp_path)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The `url` of a server in a process of its own, and the `token` of its administrator, for many tests."""
    with served(tmp_path_factory.mktemp("server")) as (_, printed):
        yield printed


@pytest.fixture
def released(cli: CommandRunner) -> CommandRunner:
    """Two versions of acme/support, both tested; the first is prod."""
    cli.add_base()
    cli.push("acme/support", "--message", "first try")
    cli.finish_smoke_test("acme/support@1")
    cli("promote", "acme/support@1", "prod", "--reason", "first release")
    cli.push("acme/support", "--message", "less rude", "--parent", "acme/support@1")
    cli.finish_smoke_test("acme/support@2")
    return cli
