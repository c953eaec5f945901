"""A client that counts requests, a folder to push, and a private cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.client.local.cache import Cache
from tests import samples
from tests.client.counting import CountingClient
from tests.harness import Harness


@pytest.fixture
def counting_client(harness: Harness) -> CountingClient:
    harness.add_base()
    return CountingClient(harness)


@pytest.fixture
def folder(harness: Harness, tmp_path: Path) -> Path:
    return samples.write(harness.files(), tmp_path / "adapter")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short relative paths for sockets, and nobody's cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
