"""A tiny real base, and a Harness that knows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import Harness
from tests.worker.setup import WorkerSetup


@pytest.fixture
def setup(harness: Harness, base_folder: Path) -> WorkerSetup:
    return WorkerSetup(harness, base_folder)
