"""Who waits for a job learns whether a worker that takes such jobs is busy, and how many visible jobs go first."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from registry.api.jobs import CampaignRequest, Claimed, ClaimRequest, FailRequest, JobSubmit
from registry.client.registry import Registry
from registry.errors import NotFound
from registry.jobs import FINAL, Kind, State
from registry.server.database import db
from registry.server.database.models.jobs import JobRow
from tests.harness import Harness


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    """acme/a, acme/b, acme/c and globex/a on tiny-llama wait for their tests, in this order."""
    with Harness(database_url) as harness:
        harness.add_base()
        for name in ("acme/a", "acme/b", "acme/c", "globex/a"):
            harness.push(name)
        yield harness
        for job in harness.admin.jobs().items:
            if job.state not in FINAL:
                harness.admin.cancel(job.id)


def job_of(harness: Harness, name: str) -> str:
    [job] = harness.admin.jobs(ref=name).items
    return job.id


def claim(registry: Registry, worker: str = "w") -> Claimed:
    claimed = registry.claim(ClaimRequest(worker=worker))
    assert claimed is not None
    return claimed


def give_back(registry: Registry, claimed: Claimed) -> None:
    registry.fail(claimed.job.id, FailRequest(lease_token=claimed.lease.token, error="no memory"))


def change(harness: Harness, job_id: str, **fields: Any) -> None:
    with harness.session(write=True) as session:
        row = session.get_one(JobRow, job_id)
        for name, value in fields.items():
            setattr(row, name, value)
        session.add(row)


def position(harness: Harness, name: str, registry: Registry | None = None) -> tuple[bool, int]:
    view = (registry or harness.admin).queue_position(job_of(harness, name))
    return bool(view.worker_is_busy), view.jobs_ahead


def test_without_a_worker_only_the_jobs_ahead_are_counted(harness: Harness) -> None:
    assert [position(harness, f"acme/{name}") for name in "abc"] == [(False, 0), (False, 1), (False, 2)]
    change(harness, job_of(harness, "acme/c"), priority=5)
    assert [position(harness, f"acme/{name}") for name in "abc"] == [(False, 1), (False, 2), (False, 0)]


def test_a_worker_is_busy_until_its_lease_ends_and_its_own_job_waits_no_more(harness: Harness) -> None:
    claimed = claim(harness.admin)
    assert (position(harness, "acme/a"), position(harness, "acme/b")) == ((False, 0), (True, 1))
    change(harness, claimed.job.id, lease_expires_at=db.now() - timedelta(seconds=1))
    assert position(harness, "acme/b") == (False, 1), "the worker is silent"
    assert position(harness, "acme/a") == (False, 0), "and its job waits for another one"


def test_a_worker_that_passes_a_namespace_by_does_not_count(harness: Harness) -> None:
    """Else a busy worker that may not work in a namespace keeps its users waiting without end."""
    harness.push("globex/b")
    globex = harness.actor("work", "pull", namespaces=["globex"])
    first = claim(globex)
    assert position(harness, "acme/a") == (True, 1), "perhaps it was the turn of globex"
    give_back(globex, first)
    claim(globex)
    assert position(harness, "acme/a") == (False, 1), "it was the turn of acme"
    acme = claim(harness.admin, "w2")
    assert position(harness, "acme/b") == (True, 2)
    give_back(harness.admin, acme)
    assert position(harness, "acme/b") == (False, 2), "that worker is idle now"


@pytest.mark.security
def test_jobs_of_others_are_neither_shown_nor_counted(harness: Harness) -> None:
    claim(harness.admin)
    globex = harness.actor("pull", namespaces=["globex"])
    assert position(harness, "globex/a", globex) == (True, 0)
    assert position(harness, "globex/a")[1] == 3
    with pytest.raises(NotFound, match="there is no job"):
        position(harness, "acme/b", globex)


def test_merges_wait_for_any_worker_and_tests_not_for_one_that_only_merges(harness: Harness) -> None:
    recipe = {"operation": "combine", "sources": ["acme/a@1", "acme/b@1"], "weights": [1.0, 1.0], "into": "acme/merged"}
    merge = harness.admin.submit(JobSubmit(kind=Kind.MERGE, ref="acme/a@1", payload=recipe))
    running = claim(harness.admin)
    assert harness.admin.queue_position(merge.id).worker_is_busy
    harness.admin.cancel(running.job.id)
    assert not harness.admin.queue_position(merge.id).worker_is_busy
    claimed = harness.admin.claim(ClaimRequest(worker="merges", kinds=[Kind.MERGE]))
    assert claimed is not None
    assert position(harness, "acme/c")[0] is False


def test_a_campaign_says_whether_a_worker_is_busy(harness: Harness) -> None:
    campaign = harness.admin.start_campaign(CampaignRequest(base="tiny-llama"))
    assert not campaign.worker_is_busy
    claimed = claim(harness.admin)
    assert harness.admin.campaign(campaign.id).worker_is_busy
    change(harness, claimed.job.id, lease_expires_at=db.now() - timedelta(seconds=1))
    view = harness.admin.campaign(campaign.id)
    assert (view.worker_is_busy, view.states) == (False, {State.QUEUED: 3, State.RUNNING: 1})
