"""64 clients at once on a real server, and collection at no grace under pushes and pulls. `make soak` is longer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults import races
from tests.faults.stage import Stage

StageOn = Callable[[str, str], Stage]
CLIENTS = 64
CHURN_SECONDS = 4.0


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_64_clients_with_equal_bytes_make_one_version(stage_on: StageOn, database: str) -> None:
    assert races.equal(stage_on(database, "local"), "acme/equal", CLIENTS) == []


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_64_clients_with_different_bytes_make_64_versions(stage_on: StageOn, database: str) -> None:
    assert races.different(stage_on(database, "local"), "acme/different", CLIENTS) == []


@pytest.mark.parametrize(("database", "store"), [("sqlite", "local"), ("postgres", "s3")])
def test_collection_at_no_grace_takes_nothing_from_pushers_and_pullers(
    stage_on: StageOn, database: str, store: str
) -> None:
    assert races.churn(stage_on(database, store), "acme/churn", CHURN_SECONDS) == []
