"""Campaigns of revalidation, thresholds of bases, steps and priorities of jobs: what is queued, and what is told."""

from __future__ import annotations

from typing import Any

import pytest

from registry.api.jobs import CampaignRequest, ClaimRequest, FailRequest, FinishRequest, JobSubmit, RenewRequest
from registry.errors import Denied, Invalid, NotFound
from registry.evaluation.reference_logprobs import Prompt, ReferenceLogprobs
from registry.findings import Finding
from registry.jobs import State
from registry.names import Ref
from registry.server.database.models import BaseRow, VerdictRow
from tests.harness import Harness, rows

BAD = Finding(code="smoke.no_effect", severity="error", location="logits", message="it answers as the base does")


@pytest.fixture
def filled_harness(harness: Harness) -> Harness:
    """Three adapters of one base, each evaluated well; the third by another torch."""
    harness.add_base()
    for name in ("one", "two", "three"):
        harness.push(f"acme/{name}")
        harness.validate(f"acme/{name}@1")
    with harness.session(write=True) as session:
        row = [row for row in rows(session, VerdictRow) if row.check == "smoke"][-1]
        row.made_by = {"torch": "2.13.0+cpu"}
        session.add(row)
    return harness


def begin(harness: Harness, **how: Any) -> Any:
    return harness.admin.start_campaign(CampaignRequest(base="tiny-llama", **how))


def end(harness: Harness) -> None:
    for state in ("queued", "running"):
        for job in harness.admin.jobs(state=state).items:
            harness.admin.cancel(job.id)


def test_a_campaign_queues_every_version_and_ends_in_what_changed(filled_harness: Harness) -> None:
    view = begin(filled_harness)
    assert (view.total, view.states, view.finished) == (3, {State.QUEUED: 3}, False)
    filled_harness.validate("acme/one@1")
    filled_harness.validate("acme/two@1", [BAD])
    claimed = filled_harness.admin.claim(ClaimRequest(worker="w"))
    assert claimed is not None
    filled_harness.admin.fail(
        claimed.job.id, FailRequest(lease_token=claimed.lease.token, error="out of memory", final=True)
    )
    view = filled_harness.admin.campaign(view.id)
    assert (view.finished, view.states) == (True, {State.DONE: 2, State.FAILED: 1})
    items = {item.version: (item.before, item.after, item.summary) for item in view.items}
    assert items == {
        "acme/two@1": ("pass", "fail", BAD.message),
        "acme/three@1": ("pass", "", "out of memory"),
    }


def test_only_versions_tested_by_another_tool_version_are_affected(filled_harness: Harness) -> None:
    view = begin(filled_harness, made_by={"torch": "2.13.0"})
    assert {job.subject for job in filled_harness.admin.jobs(state="queued").items} == {"acme/one@1", "acme/two@1"}
    assert view.total == 2
    end(filled_harness)
    for version, total in (("2.13.0+cpu", 2), ("2.13.0+cu130", 3), ("2.13", 3)):
        assert begin(filled_harness, made_by={"torch": version}).total == total
        end(filled_harness)


def test_a_base_with_another_fingerprint_makes_its_verdicts_outdated(filled_harness: Harness) -> None:
    assert begin(filled_harness, outdated=True).total == 0
    with filled_harness.session(write=True) as session:
        base = rows(session, BaseRow)[0]
        base.fingerprint = "sha256:" + "1" * 64
        session.add(base)
    assert begin(filled_harness, outdated=True).total == 3
    end(filled_harness)


def test_yanked_and_incompatible_versions_are_not_affected(filled_harness: Harness) -> None:
    filled_harness.admin.yank("acme/one@1", reason="wrong data")
    with filled_harness.session(write=True) as session:
        compat = [row for row in rows(session, VerdictRow) if row.check == "compat"][1]
        compat.outcome = "fail"
        session.add(compat)
    begin(filled_harness)
    assert [job.subject for job in filled_harness.admin.jobs(state="queued").items] == ["acme/three@1"]
    end(filled_harness)


def test_a_campaign_affects_what_its_creator_may_push_and_shows_what_the_reader_may_see(
    filled_harness: Harness,
) -> None:
    filled_harness.push("other/four")
    filled_harness.validate("other/four@1")
    creator = filled_harness.actor("push", "pull", namespaces=["other"], name="tenant")
    view = creator.start_campaign(CampaignRequest(base="tiny-llama"))
    assert view.total == 1
    everything = begin(filled_harness)
    assert everything.total == 4
    assert creator.campaign(everything.id).total == 1
    with pytest.raises(NotFound, match="no campaign"):
        creator.campaign("cam_unknown")
    with pytest.raises(NotFound, match="no campaign"):
        filled_harness.actor("pull", "push", namespaces=["initech"]).campaign(everything.id)
    end(filled_harness)


def test_a_queued_job_joins_the_campaign_and_jobs_of_pushes_go_first(filled_harness: Harness) -> None:
    waiting = filled_harness.admin.submit(JobSubmit(kind="smoke-test", ref="acme/two@1"))
    urgent = filled_harness.admin.submit(JobSubmit(kind="smoke-test", ref="acme/three@1", priority=5))
    view = begin(filled_harness)
    assert (view.total, len(filled_harness.admin.jobs(state="queued").items)) == (3, 3)
    jobs = []
    while (claimed := filled_harness.admin.claim(ClaimRequest(worker="w"))) is not None:
        jobs.append(claimed.job)
    assert [job.id for job in jobs[:2]] == [urgent.id, waiting.id]
    assert [job.priority for job in jobs] == [5, 0, -10]
    end(filled_harness)


def test_progress_messages_of_a_worker_are_stored_as_steps(filled_harness: Harness) -> None:
    job = filled_harness.admin.submit(JobSubmit(kind="smoke-test", ref="acme/one@1"))
    claimed = filled_harness.admin.claim(ClaimRequest(worker="w"))
    assert claimed is not None
    for says in ("pulling", "pulling", "asking 3 golden samples"):
        filled_harness.admin.renew(job.id, RenewRequest(lease_token=claimed.lease.token, progress=says))
    view = filled_harness.admin.job(job.id)
    assert [(step.attempt, step.message) for step in view.steps] == [(1, "pulling"), (1, "asking 3 golden samples")]
    end(filled_harness)


def test_thresholds_belong_to_a_base_and_go_to_its_workers(filled_harness: Harness) -> None:
    view = filled_harness.admin.set_thresholds("tiny-llama", {"drift_warn_kl_nats": 1.5})
    assert view.thresholds == {"drift_warn_kl_nats": 1.5}
    filled_harness.admin.submit(JobSubmit(kind="smoke-test", ref="acme/one@1"))
    claimed = filled_harness.admin.claim(ClaimRequest(worker="w"))
    assert claimed is not None
    assert claimed.base is not None
    assert claimed.base.thresholds == {"drift_warn_kl_nats": 1.5}
    assert filled_harness.admin.set_thresholds("tiny-llama", {}).thresholds == {}
    for wrong in ({"drift": 1.0}, {"drift_warn_kl_nats": -1.0}):
        with pytest.raises(Invalid, match="thresholds: drift"):
            filled_harness.admin.set_thresholds("tiny-llama", wrong)
    with pytest.raises(Denied):
        filled_harness.actor("push", "pull").set_thresholds("tiny-llama", {})
    end(filled_harness)


def test_reference_logprobs_come_from_the_newest_report_that_has_them(filled_harness: Harness) -> None:
    ref = Ref.parse("acme/one@1")
    with pytest.raises(NotFound, match="has recorded reference log-probabilities yet"):
        filled_harness.admin.reference_logprobs(ref)
    job = filled_harness.admin.submit(JobSubmit(kind="smoke-test", ref=str(ref)))
    claimed = filled_harness.admin.claim(ClaimRequest(worker="w"))
    assert claimed is not None
    print_ = ReferenceLogprobs(prompts=(Prompt(tokens=(1, 2, 3), adapter=(-0.5, -1.0), base=(-3.0, -2.0)),))
    version = filled_harness.admin.version(ref)
    report = filled_harness.report(version.digest, version.base).model_copy(update={"reference_logprobs": print_})
    filled_harness.admin.finish(job.id, FinishRequest(lease_token=claimed.lease.token, report=report))
    view = filled_harness.admin.reference_logprobs(ref)
    assert (view.reference_logprobs, view.version, view.digest) == (print_, "acme/one@1", version.digest)
