"""64 clients at once on a real server, and collection at no grace under pushes and pulls. `make soak` is longer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults import races
from tests.faults.deployment import Deployment

DeploymentOn = Callable[[str, str], Deployment]
CLIENTS = 64
CHURN_SECONDS = 4.0


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_64_clients_with_equal_bytes_make_one_version(deployment_on: DeploymentOn, database: str) -> None:
    assert races.equal(deployment_on(database, "local"), "acme/equal", CLIENTS) == []


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_64_clients_with_different_bytes_make_64_versions(deployment_on: DeploymentOn, database: str) -> None:
    assert races.different(deployment_on(database, "local"), "acme/different", CLIENTS) == []


@pytest.mark.parametrize(("database", "store"), [("sqlite", "local"), ("postgres", "s3")])
def test_gc_without_a_grace_period_deletes_nothing_that_pushes_and_pulls_need(
    deployment_on: DeploymentOn, database: str, store: str
) -> None:
    assert races.churn(deployment_on(database, store), "acme/churn", CHURN_SECONDS) == []
