"""Each test has its own data, profile and cache folders, and no registry in the environment."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.runner import CommandRunner, served


def command_runner(folder: Path, patch: pytest.MonkeyPatch, first_seed: int = 1) -> CommandRunner:
    """A runner whose registry, profile and cache are in this folder."""
    for variable in ("ADAPTER_REGISTRY", "ADAPTER_TOKEN", "REGISTRY_DATABASE_URL", "REGISTRY_BLOBS"):
        patch.delenv(variable, raising=False)
    patch.setenv("REGISTRY_DATA", str(folder / "data"))
    patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    return CommandRunner(folder, first_seed)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migrated_sqlite: Path) -> CommandRunner:
    (tmp_path / "data").mkdir()
    shutil.copyfile(migrated_sqlite, tmp_path / "data" / "registry.db")
    return command_runner(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The `url` of a server in a process of its own, and the `token` of its administrator, for many tests."""
    with served(tmp_path_factory.mktemp("server")) as (_, printed):
        yield printed


@pytest.fixture(scope="session")
def released_folder(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Path:
    folder = tmp_path_factory.mktemp("released")
    (folder / "data").mkdir()
    shutil.copyfile(migrated_sqlite, folder / "data" / "registry.db")
    with pytest.MonkeyPatch.context() as patch:
        cli = command_runner(folder, patch)
        cli.add_base()
        cli.push("acme/support", "--message", "first try")
        cli.finish_smoke_test("acme/support@1")
        cli("promote", "acme/support@1", "prod", "--reason", "first release")
        cli.push("acme/support", "--message", "less rude", "--parent", "acme/support@1")
        cli.finish_smoke_test("acme/support@2")
    return folder


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, released_folder: Path) -> CommandRunner:
    """Two versions of acme/support, both tested; the first is prod. A copy of a registry that is made once."""
    shutil.copytree(released_folder, tmp_path, dirs_exist_ok=True)
    return command_runner(tmp_path, monkeypatch, first_seed=100)
