"""Every test of the server runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import pytest

from tests.harness import Harness


@pytest.fixture(params=["sqlite", "postgres"])
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def filled_harness(harness: Harness) -> Harness:
    """With a base."""
    harness.add_base()
    return harness


@pytest.fixture
def closed(harness: Harness) -> Harness:
    """An application without a trusted actor, as `adapter serve` has it."""
    harness.app.state.trusted = None
    return harness
