"""Ended jobs: a version keeps the newest, `gc` deletes old ones, and what they led to stays."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from registry.api.jobs import CampaignRequest, ClaimRequest, FinishRequest, JobSubmit, RenewRequest
from registry.errors import NotFound, Unavailable
from registry.jobs import Job, Kind, State
from registry.server.database import db
from registry.server.database.models import EventRow
from registry.server.database.models.jobs import CampaignRow, JobRow, JobStepRow
from registry.server.jobs import campaigns, ended
from tests.harness import Harness, rows
from tests.maintenance import collect, findings

NAME = "acme/support"


@pytest.fixture
def filled_harness(harness: Harness) -> Harness:
    harness.add_base()
    harness.push(NAME)
    return harness


def convert(harness: Harness, length: int = 2**19) -> Job:
    """Convert the version with a result of half a megabyte, by the namespace's own worker."""
    worker = harness.actor("work", namespaces=["acme"])
    job = harness.admin.submit(JobSubmit(kind=Kind.CONVERT, ref=NAME, payload={"to": "gguf", "into": "acme/gguf"}))
    claimed = worker.claim(ClaimRequest(worker="w", kinds=[Kind.CONVERT]))
    assert claimed is not None
    worker.renew(job.id, RenewRequest(lease_token=claimed.lease.token, progress="converting"))
    return worker.finish(job.id, FinishRequest(lease_token=claimed.lease.token, result={"notes": "x" * length}))


def end_long_ago(harness: Harness, **changes: Any) -> None:
    long_ago = db.now() - timedelta(days=91)
    with harness.session(write=True) as session:
        for row in rows(session, JobRow):
            row.created_at = long_ago
            row.finished_at = row.finished_at and long_ago
            session.add(row.sqlmodel_update(changes))
        for campaign in rows(session, CampaignRow):
            campaign.created_at = long_ago
            session.add(campaign)


def ids(harness: Harness, **how: Any) -> list[str]:
    return [job.id for job in harness.admin.jobs(**how).items]


@pytest.mark.security
@pytest.mark.parametrize("database_kind", ["sqlite", "postgres"])
def test_a_version_keeps_its_newest_ended_jobs_of_each_kind(filled_harness: Harness) -> None:
    """A namespace's own worker may send a megabyte for each job, which no quota counts, and queue the next one."""
    [smoke_test] = ids(filled_harness)
    jobs = [convert(filled_harness) for _ in range(6)]
    assert ids(filled_harness, kind=Kind.CONVERT) == [job.id for job in reversed(jobs[-4:])], "three, and the new one"
    filled_harness.admin.cancel(filled_harness.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=NAME)).id)
    assert ids(filled_harness, kind=Kind.SMOKE_TEST) == [smoke_test]
    with pytest.raises(NotFound) as missing:
        filled_harness.admin.job(jobs[0].id)
    assert f"beyond {ended.ENDED_CHARACTERS // 2**20} MiB" in missing.value.next_step
    with filled_harness.session() as session:
        assert {row.job_id for row in rows(session, JobStepRow)} == {job.id for job in jobs[-4:]}
        assert {row.object for row in rows(session, EventRow)} >= {job.id for job in jobs}


def test_old_jobs_are_deleted_with_their_steps_and_what_they_led_to_stays(filled_harness: Harness) -> None:
    filled_harness.validate(f"{NAME}@1")
    job = convert(filled_harness)
    waiting = filled_harness.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=NAME))
    before = filled_harness.admin.version(NAME)
    assert collect(filled_harness).jobs_deleted == 0
    end_long_ago(filled_harness)
    expected = collect(filled_harness, dry_run=True).jobs_deleted
    assert (expected, collect(filled_harness).jobs_deleted) == (2, 2)
    assert ids(filled_harness) == [waiting.id], "it waits however old it is"
    with pytest.raises(NotFound):
        filled_harness.admin.job(job.id)
    with filled_harness.session() as session:
        assert rows(session, JobStepRow) == []
    assert filled_harness.admin.version(NAME) == before
    [report] = [verdict.report for verdict in before.verdicts if verdict.report]
    assert filled_harness.admin.report(f"{NAME}@1", report).check == "smoke"
    assert findings(filled_harness) == []


def test_jobs_of_a_campaign_stay_as_long_as_it_and_go_with_it(
    filled_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ended, "ENDED_CHARACTERS", 0)
    begun = [filled_harness.admin.start_campaign(CampaignRequest(base="tiny-llama")) for _ in range(2)]
    [of_both] = ids(filled_harness)
    filled_harness.admin.cancel(of_both)
    filled_harness.admin.cancel(filled_harness.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=NAME)).id)
    assert [filled_harness.admin.campaign(campaign.id).states for campaign in begun] == [{State.CANCELLED: 1}] * 2
    end_long_ago(filled_harness)
    report = collect(filled_harness)
    assert (report.jobs_deleted, report.campaigns_deleted) == (2, 2)
    with pytest.raises(NotFound):
        filled_harness.admin.campaign(begun[0].id)


@pytest.mark.security
def test_an_actor_begins_a_limited_number_of_campaigns_in_a_day(
    filled_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may have 5,000 rows, which no quota counts."""
    monkeypatch.setattr(campaigns, "DAILY_LIMIT", 2)
    request = CampaignRequest(base="tiny-llama")
    pusher = filled_harness.actor("push", namespaces=["acme"])
    pusher.connection._wait = lambda _seconds: None
    for _ in range(2):
        pusher.start_campaign(request)
    with pytest.raises(Unavailable, match="over the limit of 2 per day") as limited:
        pusher.start_campaign(request)
    assert 86000 < (limited.value.retry_after_seconds or 0) <= 86401
    assert filled_harness.admin.start_campaign(request).total == 1
