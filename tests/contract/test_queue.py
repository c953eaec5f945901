"""What every database must do for the queue: one holder per job, fencing, takeover, order."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from sqlmodel import select

from registry import jobs
from registry.api.jobs import Claimed, ClaimRequest, FailRequest, FinishRequest, JobSubmit, RenewRequest
from registry.client.registry import Registry
from registry.errors import Conflict, Denied, Invalid, NotFound
from registry.findings import Finding
from registry.jobs import Kind, State
from registry.names import AdapterName
from registry.server import actors
from registry.server.database import db
from registry.server.database.models import EventRow, VerdictRow, VersionRow
from registry.server.database.models.jobs import JobRow
from registry.server.jobs import queue
from tests import samples
from tests.harness import Harness, rows

NAME = "acme/support"


@pytest.fixture
def filled_harness(harness: Harness) -> Harness:
    harness.add_base()
    harness.push(NAME)
    return harness


def claim(registry: Registry, *bases: str, worker: str = "w1") -> Claimed:
    claimed = registry.claim(ClaimRequest(worker=worker, bases=list(bases)))
    assert claimed is not None
    return claimed


def ended(harness: Harness, claimed: Claimed, findings: tuple[Finding, ...] = ()) -> FinishRequest:
    assert claimed.subject is not None
    report = harness.report(claimed.subject.digest, claimed.job.base, findings)
    return FinishRequest(lease_token=claimed.lease.token, report=report)


def let_the_lease_run_out(harness: Harness, job_id: str) -> None:
    with harness.session(write=True) as session:
        row = session.get_one(JobRow, job_id)
        row.lease_expires_at = db.now() - timedelta(seconds=1)
        session.add(row)


def end_all(harness: Harness) -> None:
    """Cancel what a test leaves, so that no job is left running."""
    for job in harness.admin.jobs().items:
        if job.state not in jobs.FINAL:
            harness.admin.cancel(job.id)


def test_a_push_enqueues_one_validation_and_a_claim_brings_all_that_it_needs(filled_harness: Harness) -> None:
    claimed = claim(filled_harness.admin)
    assert (claimed.job.kind, claimed.job.state, claimed.job.attempt) == (Kind.SMOKE_TEST, State.RUNNING, 1)
    assert claimed.job.subject == f"{NAME}@1"
    assert claimed.subject is not None
    assert claimed.subject.digest == claimed.job.subject_digest
    assert claimed.base is not None
    assert claimed.base.name == "tiny-llama"
    assert filled_harness.admin.claim(ClaimRequest(worker="w2")) is None
    end_all(filled_harness)


def test_a_finished_validation_leaves_verdict_report_event_and_state(filled_harness: Harness) -> None:
    claimed = claim(filled_harness.admin)
    finding = Finding(code="smoke.no_effect", severity="error", location="logits", message="nothing changes")
    done = filled_harness.admin.finish(claimed.job.id, ended(filled_harness, claimed, (finding,)))
    assert done.state is State.DONE
    smoke = filled_harness.admin.version(NAME).verdicts[-1]
    assert (smoke.check, smoke.outcome, smoke.summary) == ("smoke", "fail", "nothing changes")
    assert smoke.report is not None
    assert filled_harness.admin.report(NAME, smoke.report).findings == (finding,)
    with filled_harness.session() as session:
        actions = [row.action for row in rows(session, EventRow)]
    assert actions[-2:] == ["job.finish", "verdict.add"]


def test_finishing_twice_is_finishing_once(filled_harness: Harness) -> None:
    claimed = claim(filled_harness.admin)
    request = ended(filled_harness, claimed)
    first = filled_harness.admin.finish(claimed.job.id, request)
    assert filled_harness.admin.finish(claimed.job.id, request) == first
    with filled_harness.session() as session:
        assert len([v for v in rows(session, VerdictRow) if v.check == "smoke"]) == 1


def test_a_lost_lease_can_neither_renew_nor_finish_nor_fail(filled_harness: Harness) -> None:
    old = claim(filled_harness.admin)
    let_the_lease_run_out(filled_harness, old.job.id)
    new = claim(filled_harness.admin, worker="w2")
    assert (new.job.id, new.job.attempt) == (old.job.id, 2)
    for act in (
        lambda: filled_harness.admin.renew(old.job.id, RenewRequest(lease_token=old.lease.token)),
        lambda: filled_harness.admin.finish(old.job.id, ended(filled_harness, old)),
        lambda: filled_harness.admin.fail(old.job.id, FailRequest(lease_token=old.lease.token, error="late")),
    ):
        with pytest.raises(Conflict) as caught:
            act()
        assert caught.value.code == "LEASE_LOST"
    filled_harness.admin.finish(new.job.id, ended(filled_harness, new))
    with filled_harness.session() as session:
        assert len([v for v in rows(session, VerdictRow) if v.check == "smoke"]) == 1


def test_a_renewed_lease_is_not_taken_over(filled_harness: Harness) -> None:
    claimed = claim(filled_harness.admin)
    let_the_lease_run_out(filled_harness, claimed.job.id)
    assert filled_harness.admin.job(claimed.job.id).lease_expired
    lease = filled_harness.admin.renew(
        claimed.job.id, RenewRequest(lease_token=claimed.lease.token, progress="prompt 2 of 4")
    )
    assert lease.token == claimed.lease.token
    assert not filled_harness.admin.job(claimed.job.id).lease_expired
    assert filled_harness.admin.job(claimed.job.id).progress == "prompt 2 of 4"
    assert filled_harness.admin.claim(ClaimRequest(worker="w2")) is None
    end_all(filled_harness)


def test_a_late_result_counts_while_no_other_worker_has_the_job(filled_harness: Harness) -> None:
    claimed = claim(filled_harness.admin)
    let_the_lease_run_out(filled_harness, claimed.job.id)
    assert filled_harness.admin.finish(claimed.job.id, ended(filled_harness, claimed)).state is State.DONE


def test_a_job_whose_workers_all_vanish_fails_with_a_reason(filled_harness: Harness) -> None:
    job_id = ""
    for _ in range(jobs.ATTEMPTS_LIMIT):
        job_id = claim(filled_harness.admin).job.id
        let_the_lease_run_out(filled_harness, job_id)
    assert filled_harness.admin.claim(ClaimRequest(worker="w2")) is None
    failed = filled_harness.admin.job(job_id)
    assert failed.state is State.FAILED
    assert "did not renew its lease in attempt 3" in failed.error


def test_a_failed_attempt_is_retried_until_the_job_fails(
    filled_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "BACKOFF_SECONDS", (3600,))
    for attempt in range(1, jobs.ATTEMPTS_LIMIT + 1):
        claimed = claim(filled_harness.admin)
        assert claimed.job.attempt == attempt
        failed = filled_harness.admin.fail(
            claimed.job.id, FailRequest(lease_token=claimed.lease.token, error="no memory")
        )
        if attempt < jobs.ATTEMPTS_LIMIT:
            assert failed.state is State.QUEUED
            assert filled_harness.admin.claim(ClaimRequest(worker="w1")) is None, "it waits before the next attempt"
            with filled_harness.session(write=True) as session:
                row = session.get_one(JobRow, claimed.job.id)
                assert row.run_after - db.now() <= timedelta(seconds=jobs.backoff_seconds(attempt))
                row.run_after = db.now()
                session.add(row)
    assert (failed.state, failed.error) == (State.FAILED, "no memory")


def test_a_final_failure_ends_the_job_at_once(filled_harness: Harness) -> None:
    claimed = claim(filled_harness.admin)
    request = FailRequest(lease_token=claimed.lease.token, error="not a model", final=True)
    assert filled_harness.admin.fail(claimed.job.id, request).state is State.FAILED


def test_every_job_goes_to_one_of_many_racing_workers(filled_harness: Harness) -> None:
    for _ in range(11):
        filled_harness.push(NAME)
    job_ids: list[str] = []
    start = threading.Barrier(6)

    def work(worker: str) -> None:
        start.wait()
        while (claimed := filled_harness.admin.claim(ClaimRequest(worker=worker))) is not None:
            job_ids.append(claimed.job.id)
            filled_harness.admin.finish(claimed.job.id, ended(filled_harness, claimed))

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(job_ids).most_common(1)[0][1] == 1
    assert len(set(job_ids)) == 12


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
def test_a_claim_of_a_locked_job_does_not_wait_and_the_client_claims_again(
    filled_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a worker with `--once` would end without it. A campaign, say, holds jobs; the server waits for nothing."""
    connection, pauses = filled_harness.admin.connection, list[float]()
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock_queued_job(filled_harness))
        response = connection.send("POST", "/jobs/claim", json={"worker": "w1"})
        assert (response.status, response.headers["Retry-After"]) == (204, "1")

        def release(seconds: float) -> None:
            pauses.append(seconds)
            stack.close()

        monkeypatch.setattr(connection, "_wait", release)
        assert claim(filled_harness.admin).job.subject == f"{NAME}@1"
    assert len(pauses) == 1
    end_all(filled_harness)


def test_a_claim_that_finds_no_job_asks_twice_about_jobs(filled_harness: Harness) -> None:
    """For leases that have run out, and whether there is a job: nothing is sorted or locked for idle workers."""
    end_all(filled_harness)
    with filled_harness.statements() as sent:
        response = filled_harness.admin.connection.send("POST", "/jobs/claim", json={"worker": "w1"})
    assert (response.status, response.headers["Retry-After"]) == (204, None)
    assert len([statement for statement in sent if "FROM job" in statement]) == 2
    assert [statement for statement in sent if "ORDER BY" in statement or "UPDATE job" in statement] == []


@contextmanager
def lock_queued_job(harness: Harness) -> Iterator[None]:
    """Ask for the queued job again, in a transaction that goes on for this block."""
    with harness.session(write=True) as session:
        job = session.exec(select(JobRow).where(JobRow.state == State.QUEUED)).one()
        version = session.get_one(VersionRow, job.version_id)
        repeated = queue.enqueue(
            session, actors.SYSTEM, Kind.SMOKE_TEST, version, name=AdapterName.parse(NAME), base=job.base
        )
        assert repeated.id == job.id
        yield


def test_a_worker_gets_jobs_of_its_bases_warm_ones_first_then_oldest(filled_harness: Harness) -> None:
    other = samples.llama("other-llama", seed=9)
    filled_harness.add_base(other)
    filled_harness.push("acme/other", filled_harness.files(other), base=other.name)
    filled_harness.push(NAME)
    order = [claim(filled_harness.admin, "other-llama", "tiny-llama").job.subject for _ in range(3)]
    assert order == ["acme/other@1", f"{NAME}@1", f"{NAME}@2"]
    assert filled_harness.admin.claim(ClaimRequest(worker="w", bases=["unheard-of"])) is None
    end_all(filled_harness)


def test_a_higher_priority_goes_first(filled_harness: Harness) -> None:
    filled_harness.push(NAME)
    with filled_harness.session(write=True) as session:
        row = next(r for r in rows(session, JobRow) if r.subject == f"{NAME}@2")
        row.priority = 5
        session.add(row)
    assert claim(filled_harness.admin).job.subject == f"{NAME}@2"
    end_all(filled_harness)


def test_a_worker_sees_the_jobs_of_its_namespaces_only(filled_harness: Harness) -> None:
    globex = filled_harness.actor("work", namespaces=["globex"])
    assert globex.claim(ClaimRequest(worker="w")) is None
    claimed = claim(filled_harness.actor("work", namespaces=["acme"]))
    for act in (
        lambda: globex.renew(claimed.job.id, RenewRequest(lease_token=claimed.lease.token)),
        lambda: globex.finish(claimed.job.id, ended(filled_harness, claimed)),
        lambda: globex.job(claimed.job.id),
    ):
        with pytest.raises(NotFound):
            act()
    with pytest.raises(Denied):
        filled_harness.actor("push").claim(ClaimRequest(worker="w"))
    end_all(filled_harness)


def test_the_same_validation_is_not_queued_twice(filled_harness: Harness) -> None:
    first = filled_harness.admin.jobs().items[0]
    assert filled_harness.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=NAME)) == first
    claimed = claim(filled_harness.admin)
    filled_harness.admin.finish(claimed.job.id, ended(filled_harness, claimed))
    again = filled_harness.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=f"{NAME}@1"))
    assert (again.id != first.id, again.state) == (True, State.QUEUED)


def test_a_canceled_job_stays_canceled_and_its_worker_learns_it(filled_harness: Harness) -> None:
    claimed = claim(filled_harness.admin)
    assert filled_harness.admin.cancel(claimed.job.id).state is State.CANCELLED
    assert filled_harness.admin.cancel(claimed.job.id).state is State.CANCELLED
    with pytest.raises(Conflict) as caught:
        filled_harness.admin.renew(claimed.job.id, RenewRequest(lease_token=claimed.lease.token))
    assert caught.value.code == "LEASE_LOST"
    assert filled_harness.admin.claim(ClaimRequest(worker="w")) is None


def test_a_finished_job_cannot_be_cancelled(filled_harness: Harness) -> None:
    claimed = claim(filled_harness.admin)
    filled_harness.admin.finish(claimed.job.id, ended(filled_harness, claimed))
    with pytest.raises(Conflict) as caught:
        filled_harness.admin.cancel(claimed.job.id)
    assert caught.value.code == "JOB_STATE"


def test_a_report_about_something_else_is_refused_and_leaves_the_job_held(filled_harness: Harness) -> None:
    filled_harness.push("acme/other")
    claimed = claim(filled_harness.admin)
    elsewhere = filled_harness.admin.version("acme/other").digest
    wrong = FinishRequest(lease_token=claimed.lease.token, report=filled_harness.report(elsewhere, "tiny-llama"))
    for request in (wrong, FinishRequest(lease_token=claimed.lease.token)):
        with pytest.raises(Invalid):
            filled_harness.admin.finish(claimed.job.id, request)
    assert filled_harness.admin.job(claimed.job.id).state is State.RUNNING
    assert [verdict.check for verdict in filled_harness.admin.version(NAME).verdicts] == ["compat", "weights"]
    end_all(filled_harness)


def test_only_the_holder_of_a_lease_sees_its_token(filled_harness: Harness) -> None:
    claimed = claim(filled_harness.admin)
    assert claimed.lease.token not in filled_harness.admin.job(claimed.job.id).model_dump_json()
    assert claimed.lease.token not in filled_harness.admin.jobs().model_dump_json()
    end_all(filled_harness)


def test_jobs_are_listed_newest_first_by_state_kind_and_subject(filled_harness: Harness) -> None:
    filled_harness.push(NAME)
    filled_harness.push("acme/support2")
    claimed = claim(filled_harness.admin)
    subjects = [job.subject for job in filled_harness.admin.jobs().items]
    assert subjects == ["acme/support2@1", f"{NAME}@2", f"{NAME}@1"]
    assert [job.id for job in filled_harness.admin.jobs(state="running").items] == [claimed.job.id]
    assert [job.subject for job in filled_harness.admin.jobs(ref=NAME).items] == [f"{NAME}@2", f"{NAME}@1"]
    assert [job.subject for job in filled_harness.admin.jobs(ref=f"{NAME}@2").items] == [f"{NAME}@2"]
    with pytest.raises(Invalid):
        filled_harness.admin.jobs(state="sleeping")
    end_all(filled_harness)


def test_enqueueing_is_undone_with_the_transaction_that_caused_it(filled_harness: Harness) -> None:
    class Undone(Exception):
        pass

    before = len(filled_harness.admin.jobs().items)
    with pytest.raises(Undone), filled_harness.session(write=True) as session:
        version = rows(session, VersionRow)[0]
        name = AdapterName("acme", "support")
        queue.enqueue(session, actors.SYSTEM, Kind.MERGE, version, name=name, base="tiny-llama")
        session.flush()
        raise Undone
    assert len(filled_harness.admin.jobs().items) == before
