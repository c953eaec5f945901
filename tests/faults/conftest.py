"""Fixtures: places for killable servers, and one stage for each kind of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.places import Places
from tests.faults.stage import Stage

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("faults")


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with Places(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.fixture(scope="session")
def stage_on(places: Places) -> Callable[[str, str], Stage]:
    """The stage on this database and store. All runs share it: what one leaves behind, the next one's check finds."""
    made: dict[tuple[str, str], Stage] = {}

    def stage(database: str, store: str) -> Stage:
        kind = (database, store)
        if kind not in made:
            folder: Path = places.folder / f"{database}-{store}"
            folder.mkdir()
            made[kind] = Stage(places.environment(*kind), folder)
        return made[kind]

    return stage
