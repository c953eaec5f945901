"""Queues that somebody means ill with, or that hold what cannot be done now: nobody else's work stands still."""

from __future__ import annotations

import httpx
import pytest
from pydantic import ValidationError

from registry import jobs
from registry.api.access import NamespaceSet
from registry.api.jobs import BASES_LIMIT, Claimed, ClaimRequest, FailRequest, JobSubmit
from registry.client.audit import Audit
from registry.client.registry import Registry
from registry.errors import Invalid, TooLarge
from registry.jobs import Kind
from registry.names import AdapterName
from registry.server import actors
from registry.server.database.models import VersionRow
from registry.server.jobs import queue
from tests.harness import URL, Harness, rows

NAME = "acme/support"
KINDS = [Kind.MERGE, Kind.CONVERT]


@pytest.fixture
def filled_harness(harness: Harness) -> Harness:
    harness.add_base()
    harness.push(NAME)
    return harness


def claim(registry: Registry) -> Claimed:
    claimed = registry.claim(ClaimRequest(worker="w1"))
    assert claimed is not None
    return claimed


def cancel_all(harness: Harness) -> None:
    for job in harness.admin.jobs().items:
        if job.state not in jobs.FINAL:
            harness.admin.cancel(job.id)


def test_a_payload_over_its_limit_is_refused(filled_harness: Harness) -> None:
    name, payload = AdapterName("acme", "support"), {"x": "y" * jobs.PAYLOAD_LIMIT_BYTES}
    with filled_harness.session(write=True) as session, pytest.raises(TooLarge):
        version = rows(session, VersionRow)[0]
        queue.enqueue(session, actors.SYSTEM, Kind.MERGE, version, name=name, base="tiny-llama", payload=payload)


def test_a_smoke_test_takes_no_payload_so_it_is_not_queued_twice(filled_harness: Harness) -> None:
    with pytest.raises(Invalid):
        filled_harness.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=NAME, payload={"again": 1}))
    [job] = filled_harness.admin.jobs().items
    assert filled_harness.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=NAME)).id == job.id


def test_a_quarantined_version_does_not_block_other_jobs(filled_harness: Harness) -> None:
    filled_harness.push("acme/next")
    worker = filled_harness.actor("work", namespaces=["acme"])
    filled_harness.admin.quarantine(NAME + "@1", "reported as poisoned")
    assert claim(worker).job.subject == "acme/next@1"
    assert worker.claim(ClaimRequest(worker="w2")) is None
    filled_harness.admin.unquarantine(NAME + "@1", "looked at")
    assert claim(worker).job.subject == NAME + "@1"
    cancel_all(filled_harness)


@pytest.mark.parametrize("result", ['{"a": "\\ud800"}', '{"\\udfff": 1}', '{"a": ' + "[" * 900 + "]" * 900 + "}", None])
def test_invalid_worker_input_is_refused_and_never_a_server_error(filled_harness: Harness, result: str | None) -> None:
    claimed = claim(filled_harness.admin)
    token = claimed.lease.token if result else "\N{SNOWMAN}"
    body = f'{{"lease_token": "{token}", "result": {result or "{}"}}}'.encode()
    headers = {"Authorization": f"Bearer {filled_harness.secret}", "Content-Type": "application/json"}
    url = f"{URL}/api/v1/jobs/{claimed.job.id}/finish"
    response = filled_harness.transport.handle_request(httpx.Request("POST", url, headers=headers, content=body))
    response.read()
    assert (response.status_code, response.json()["code"]) == (400, "REQUEST_INVALID")
    cancel_all(filled_harness)


@pytest.fixture
def shared(filled_harness: Harness) -> Harness:
    """A merge of beta's own adapter with one of a public namespace, which is where its job belongs."""
    filled_harness.admin.change_namespace("acme", NamespaceSet(public=True))
    filled_harness.push("beta/unheard-of")
    recipe = {"operation": "combine", "sources": [NAME, "beta/unheard-of"], "weights": [0.5, 0.5]}
    pusher = filled_harness.actor("push", namespaces=["beta"])
    pusher.submit(JobSubmit(kind=Kind.MERGE, payload={**recipe, "method": "linear", "into": "beta/still-to-come"}))
    pusher.submit(JobSubmit(kind=Kind.CONVERT, ref=NAME, payload={"to": "gguf", "into": "beta/still-to-come"}))
    return filled_harness


def test_a_job_on_a_public_adapter_does_not_reveal_names_of_private_sources(shared: Harness) -> None:
    """Neither readers, nor those who may cancel it there, nor that namespace's workers, nor the log."""
    reader = shared.actor("pull", namespaces=["gamma"])
    jobs = [job for job in reader.jobs().items if job.kind is not Kind.SMOKE_TEST]
    assert [(job.subject, job.payload) for job in jobs] == [(NAME + "@1", {})] * 2
    assert all(reader.job(job.id).payload == {} for job in jobs)
    own = shared.actor("pull", namespaces=["beta"])
    assert {job.payload["into"] for job in own.jobs().items if job.kind in KINDS} == {"beta/still-to-come"}
    foreign = shared.actor("work", namespaces=["acme"])
    assert foreign.claim(ClaimRequest(worker="w", kinds=KINDS)) is None
    both = shared.actor("work", namespaces=["acme", "beta"])
    claimed = both.claim(ClaimRequest(worker="w", kinds=KINDS))
    assert claimed is not None
    assert "unheard-of" in str(claimed.job.payload)
    failed = FailRequest(lease_token=claimed.lease.token, error="there is no beta/unheard-of", final=True)
    both.fail(claimed.job.id, failed)
    assert reader.job(claimed.job.id).error == ""
    assert [event.detail for event in Audit(reader).events(action=["job.fail"])] == [{"attempt": 1}]
    cancelled = [shared.actor("push", namespaces=["acme"]).cancel(jobs[0].id)]
    assert [job.payload for job in cancelled] == [{}]
    cancel_all(shared)


def test_the_bases_of_a_claim_are_limited(filled_harness: Harness) -> None:
    """Tens of thousands held the queue, and with SQLite everybody, for as long as the statement took."""
    with pytest.raises(ValidationError):
        ClaimRequest(worker="w", bases=["base"] * (BASES_LIMIT + 1))
    with pytest.raises(ValidationError):
        ClaimRequest(worker="w", kinds=[Kind.SMOKE_TEST] * (len(Kind) + 1))
    most = ["tiny-llama", *(f"base-{i}" for i in range(BASES_LIMIT - 1))]
    assert filled_harness.admin.claim(ClaimRequest(worker="w", bases=most)) is not None
    cancel_all(filled_harness)
