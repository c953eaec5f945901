"""Servers whose clocks differ go by the database's: leases and tokens end at the same moment for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from registry.api.access import TokenCreate
from registry.api.jobs import ClaimRequest
from registry.errors import Unauthenticated
from registry.jobs import JOB_LEASE_SECONDS
from registry.server.database import db
from registry.server.database import engine as engines
from registry.server.database.models import TokenRow
from tests.harness import Harness

pytestmark = pytest.mark.security

TOLERANCE = timedelta(seconds=200)
"""Of a clock that is 600 seconds wrong; a busy machine may take long from one look to the next."""


@pytest.fixture
def database_kind() -> str:
    return "postgres"


@pytest.fixture(params=[-600, 600])
def skewed_harness(
    request: pytest.FixtureRequest, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Harness]:
    """A server on a machine whose clock is ten minutes wrong."""
    skew = timedelta(seconds=request.param)
    monkeypatch.setattr(db, "_skew", timedelta(0))
    monkeypatch.setattr(db, "_read_clock", lambda: datetime.now(UTC) + skew)
    monkeypatch.setattr(engines, "CLOCK_SECONDS", 0.0)
    with Harness(database_url) as harness:
        harness.add_base()
        yield harness


def read_database_time(harness: Harness) -> datetime:
    with harness.engine.connect() as connection:
        moment: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        return moment


def test_the_server_goes_by_the_clock_of_the_database(skewed_harness: Harness) -> None:
    assert abs(db.now() - read_database_time(skewed_harness)) < TOLERANCE


def test_a_lease_and_a_token_end_by_the_clock_of_the_database(skewed_harness: Harness) -> None:
    token = skewed_harness.admin.create_token(TokenCreate(name="short", scopes=["pull"], expires_in_seconds=900))
    expires_at = token.token.expires_at
    assert expires_at is not None
    assert abs(expires_at - timedelta(seconds=900) - read_database_time(skewed_harness)) < TOLERANCE
    assert skewed_harness.client(token.secret).bases()
    with skewed_harness.session(write=True) as session:
        row = session.get_one(TokenRow, token.token.id)
        row.expires_at = read_database_time(skewed_harness) - timedelta(seconds=60)
        session.add(row)
    with pytest.raises(Unauthenticated):
        skewed_harness.client(token.secret).bases()
    skewed_harness.push("acme/support")
    claimed = skewed_harness.admin.claim(ClaimRequest(worker="w1"))
    assert claimed is not None
    lease = timedelta(seconds=JOB_LEASE_SECONDS)
    assert abs(claimed.lease.expires_at - lease - read_database_time(skewed_harness)) < TOLERANCE
    skewed_harness.give_back([claimed.job.id])
