"""Fixtures: environments for killable servers, and one deployment for each kind of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.deployment import Deployment
from tests.faults.environments import Environments

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("faults")


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environments]:
    with Environments(tmp_path_factory.mktemp("faults")) as environments:
        yield environments


@pytest.fixture(scope="session")
def deployment_on(environments: Environments) -> Callable[[str, str], Deployment]:
    """Return the deployment on a database and store. Tests share it: the next check finds what one leaves behind."""
    deployments: dict[tuple[str, str], Deployment] = {}

    def deployment(database: str, store: str) -> Deployment:
        kind = (database, store)
        if kind not in deployments:
            folder: Path = environments.folder / f"{database}-{store}"
            folder.mkdir()
            deployments[kind] = Deployment(environments.environment(*kind), folder)
        return deployments[kind]

    return deployment
