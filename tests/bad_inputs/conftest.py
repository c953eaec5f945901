"""A registry that refuses all that these tests bring: one for a whole file, because nothing of it may be kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_inputs.raw_push import RawClient
from tests.harness import Harness


@pytest.fixture(scope="module")
def refusing(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RawClient]:
    """For tests that end with `assert_refused`, which finds what an earlier one left behind."""
    path = tmp_path_factory.mktemp("refusing") / "registry.db"
    shutil.copyfile(migrated_sqlite, path)
    with Harness(f"sqlite:///{path}") as harness:
        harness.add_base()
        yield RawClient(harness)
