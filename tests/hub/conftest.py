"""One live server for all tests of Hub clients: they read, and what they push has names of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hub import live as lives
from tests.hub.live import LiveServer


@pytest.fixture(scope="session")
def live(object_store: str, bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with lives.running(object_store, bucket, tmp_path_factory.mktemp("hub")) as server:
        yield server
