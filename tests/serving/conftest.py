"""A faulty connection to the registry, a local store, a clock that stands, and a node of all these."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.serving.store.local_store import LocalStore
from tests.harness import Harness
from tests.serving.node import Clock, FaultyTransport, Node


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.client.transport.retries.PAUSE_LIMIT_SECONDS", 0.0)


@pytest.fixture
def transport(harness: Harness) -> FaultyTransport:
    harness.add_base()
    return FaultyTransport(harness.transport)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(harness: Harness, transport: FaultyTransport, store: LocalStore, clock: Clock) -> Iterator[Node]:
    node = Node(harness, transport, store, clock)
    yield node
    node.engine.stop()
