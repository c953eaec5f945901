"""Every test of access runs on SQLite and on PostgreSQL unless it says otherwise."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["sqlite", "postgres"])
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)
