"""A way to the registry that can be counted, cut and spoilt; a shelf; a clock that stands; a node with all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.serving.store.store import Shelf
from tests.serving.node import Clock, Line, Node
from tests.world import World


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.client.transport.connection.PAUSE_LIMIT_SECONDS", 0.0)


@pytest.fixture
def line(world: World) -> Line:
    world.add_base()
    return Line(world.transport)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(world: World, line: Line, shelf: Shelf, clock: Clock) -> Iterator[Node]:
    made = Node(world, line, shelf, clock)
    yield made
    made.engine.stop()
