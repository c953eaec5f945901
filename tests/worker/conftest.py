"""A tiny real base and a good adapter for it, made once; a Harness that knows the base, and workers on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.worker.loop import Worker
from registry.worker.model.sources import Sources
from registry.worker.model_process.client import Pool, ProcessLimits
from tests.harness import Harness
from tests.worker import models
from tests.worker.setup import WorkerSetup


@pytest.fixture(scope="session")
def good(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.adapter(base_folder, tmp_path_factory.mktemp("adapters") / "good")


@pytest.fixture
def setup(harness: Harness, base_folder: Path) -> WorkerSetup:
    return WorkerSetup(harness, base_folder)


@pytest.fixture
def worker(setup: WorkerSetup, pool: Pool) -> Callable[..., Worker]:
    """Makes workers with a token of their own, on the warm pool unless another is given."""

    def make(sources: Sources | None = None, **how: Any) -> Worker:
        registry = setup.harness.actor("work", "pull", name="gpu-1")
        how = {"limits": ProcessLimits(deadline_seconds=120, threads=1), "pool": pool, **how}
        return Worker(registry, sources or Sources(), say=setup.lines.append, **how)

    return make
