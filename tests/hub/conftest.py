"""One live server for all tests of Hub clients: they read, and what they push has names of its own.

Tests of requests that no client would send have a server in this process (`harness`), and one who pushes to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import Harness
from tests.hub import live as lives
from tests.hub.commits import Pusher
from tests.hub.live import LiveServer


@pytest.fixture(scope="session")
def live(object_store: str, bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with lives.running(object_store, bucket, tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    with Harness(database_url) as harness:
        harness.add_base()
        yield harness


@pytest.fixture
def pusher(harness: Harness) -> Pusher:
    return Pusher(harness, harness.issue("push", namespaces=["acme"])[1])
