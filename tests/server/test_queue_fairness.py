"""Nobody delays the jobs of others: priorities need a right, namespaces take turns, waiting merges are limited."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from registry.api.jobs import CampaignRequest, ClaimRequest, JobSubmit
from registry.errors import Denied, Unavailable
from registry.jobs import Kind
from registry.merging.recipes import MergeOperation
from registry.server.database import db
from registry.server.database.models.jobs import JobRow
from registry.server.jobs import queue, requests
from tests import samples
from tests.harness import Harness, rows

pytestmark = pytest.mark.security


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    with Harness(database_url) as harness:
        harness.add_base()
        yield harness


def claim(harness: Harness, request: ClaimRequest | None = None) -> str:
    claimed = harness.admin.claim(request or ClaimRequest(worker="w"))
    assert claimed is not None
    harness.admin.cancel(claimed.job.id)
    return claimed.job.subject


def test_a_priority_over_zero_needs_an_administrator(harness: Harness) -> None:
    harness.push("acme/support")
    pusher = harness.actor("push", namespaces=["acme"])
    claim(harness)
    urgent = JobSubmit(kind=Kind.SMOKE_TEST, ref="acme/support@1", priority=1)
    with pytest.raises(Denied):
        pusher.submit(urgent)
    with pytest.raises(Denied):
        pusher.start_campaign(CampaignRequest(base="tiny-llama", priority=100))
    assert pusher.submit(urgent.model_copy(update={"priority": -1})).priority == -1
    assert pusher.start_campaign(CampaignRequest(base="tiny-llama", priority=0)).total == 1


def test_namespaces_take_turns(harness: Harness) -> None:
    for name in ("acme/a", "acme/b", "acme/c", "globex/a", "initech/a", "globex/b"):
        harness.push(name)
    order = [claim(harness).partition("@")[0] for _ in range(6)]
    assert order == ["acme/a", "globex/a", "initech/a", "acme/b", "globex/b", "acme/c"]


def test_a_loaded_base_delays_the_jobs_of_others_for_a_bounded_time(harness: Harness) -> None:
    """A worker prefers jobs for its loaded base, but those that have waited for long take turns first."""
    harness.add_base(samples.llama("other"))
    for name in ("acme/a", "acme/b", "acme/c", "acme/d"):
        harness.push(name)
    for name in ("globex/a", "globex/b"):
        harness.push(name, base="other")
    loaded_first = ClaimRequest(worker="w", bases=["tiny-llama", "other"])
    assert [claim(harness, loaded_first).partition("@")[0] for _ in range(2)] == ["acme/a", "acme/b"]
    with harness.session(write=True) as session:
        for row in rows(session, JobRow):
            row.run_after = db.now() - timedelta(seconds=queue.AFFINITY_SECONDS)
            session.add(row)
    order = [claim(harness, loaded_first).partition("@")[0] for _ in range(4)]
    assert order == ["globex/a", "acme/c", "globex/b", "acme/d"]


def test_within_the_turn_of_a_namespace_the_loaded_base_goes_first(harness: Harness) -> None:
    harness.add_base(samples.llama("other"))
    harness.push("acme/a", base="other")
    harness.push("acme/b")
    with harness.session(write=True) as session:
        for row in rows(session, JobRow):
            row.run_after = db.now() - timedelta(seconds=queue.AFFINITY_SECONDS)
            session.add(row)
    loaded_first = ClaimRequest(worker="w", bases=["tiny-llama", "other"])
    assert [claim(harness, loaded_first).partition("@")[0] for _ in range(2)] == ["acme/b", "acme/a"]


def test_waiting_merges_into_a_namespace_are_limited(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "WAITING_LIMIT", 2)
    harness.push("acme/a")
    harness.push("acme/b")

    def merge(weight: float, into: str = "acme/merged") -> str:
        payload: dict[str, Any] = {
            "operation": MergeOperation.COMBINE,
            "sources": ["acme/a@1", "acme/b@1"],
            "into": into,
        }
        payload |= {"weights": [weight, 1.0], "method": "linear"}
        return harness.admin.submit(JobSubmit(kind=Kind.MERGE, payload=payload)).id

    first = merge(0.1)
    merge(0.2)
    with pytest.raises(Unavailable, match="into 'acme' are waiting") as refused:
        merge(0.3)
    assert refused.value.code == "RATE_LIMITED"
    with harness.statements() as sent:
        assert merge(0.3, into="globex/merged")
    counted = [statement for statement in sent if "LIKE" in statement and "job.payload" in statement]
    assert [statement.startswith("SELECT count(*)") for statement in counted] == [True], "no payload is read"
    harness.admin.cancel(first)
    assert merge(0.3)
