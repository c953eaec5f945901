"""Verdicts that a namespace's own worker reports: marked, kept apart from the registry's, and never attested."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from registry.api.access import NamespaceSet
from registry.api.jobs import ClaimRequest, FinishRequest, JobSubmit
from registry.client.audit import Audit
from registry.client.registry import Registry
from registry.digest import Digest
from registry.errors import NotFound, Refused, TooLarge
from registry.findings import Finding
from registry.jobs import Kind
from registry.server.database.models import BlobRow, VerdictRow
from tests.harness import Harness, rows
from tests.maintenance import check, collect, states

pytestmark = pytest.mark.security
REF = "acme/support@1"


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    with Harness(database_url) as harness:
        harness.add_base()
        harness.push("acme/support")
        yield harness


def compat_says(harness: Harness, findings: list[Finding], *, by: Registry | None = None) -> list[str]:
    """What the check `compat` says, oldest first, after a smoke test in which PEFT said this."""
    harness.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=REF))
    worker = by or harness.admin
    claimed = worker.claim(ClaimRequest(worker="test"))
    assert claimed is not None
    report = harness.report(harness.admin.version(REF).digest, "tiny-llama").model_copy(
        update={"compat": tuple(findings)}
    )
    worker.finish(claimed.job.id, FinishRequest(lease_token=claimed.lease.token, report=report))
    return [str(v.outcome) for v in harness.admin.version(REF).verdicts if v.check == "compat"]


def test_an_owner_takes_back_its_own_no_but_not_the_registrys(harness: Harness) -> None:
    owner = harness.actor("work", namespaces=["acme"], name="acme-worker")
    no = [Finding.of("error", "compat.peft_refused", "", "PEFT refuses it")]
    assert compat_says(harness, no, by=owner) == ["pass", "fail"]
    with pytest.raises(Refused):
        harness.admin.promote("acme/support", "canary", "1", generation=0)
    assert compat_says(harness, [], by=owner) == ["pass", "pass"]
    harness.admin.promote("acme/support", "canary", "1", generation=0)
    assert compat_says(harness, no, by=owner) == ["pass", "fail"]
    assert compat_says(harness, no) == ["fail", "fail"]
    assert compat_says(harness, [], by=owner) == ["fail", "fail"]
    with pytest.raises(Refused):
        harness.admin.promote("acme/support", "next", "1", generation=0)


def smoke_verdicts(harness: Harness) -> list[tuple[str, bool, str]]:
    verdicts = harness.admin.version(REF).verdicts
    return [(str(v.outcome), v.by_owner, v.reported_by) for v in verdicts if v.check == "smoke"]


def attested_checks(harness: Harness) -> list[str]:
    harness.transport.settle()
    return [item.kind for item in Audit(harness.admin).attestations(REF).items]


def test_an_owners_verdict_is_marked_and_not_attested(harness: Harness) -> None:
    owner = harness.actor("admin", namespaces=["acme"], name="acme-worker")
    harness.validate(REF, by=owner)
    assert smoke_verdicts(harness) == [("pass", True, "token:acme-worker")]
    resolved = harness.admin.resolve("acme/support")
    assert resolved.verdicts["smoke (owner)"] == "pass"
    assert "smoke" not in resolved.verdicts
    assert harness.admin.adapter("acme/support").verdicts["smoke (owner)"] == "pass"
    assert "verdict" not in attested_checks(harness)
    [event] = Audit(harness.admin).events(object=REF, action=["verdict.add"])
    assert event.detail["by_owner"] is True
    with pytest.raises(NotFound):
        harness.admin.reference_logprobs(REF)


def test_the_registrys_verdict_and_the_owners_do_not_replace_each_other(harness: Harness) -> None:
    fail = [Finding.of("error", "smoke.no_effect", "", "changes nothing")]
    harness.validate(REF, fail)
    owner = harness.actor("work", namespaces=["acme"], name="acme-worker")
    harness.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=REF))
    harness.validate(REF, by=owner)
    assert smoke_verdicts(harness) == [("fail", False, "token:admin"), ("pass", True, "token:acme-worker")]
    verdicts = harness.admin.resolve("acme/support").verdicts
    assert (verdicts["smoke"], verdicts["smoke (owner)"]) == ("fail", "pass")
    assert attested_checks(harness).count("verdict") == 1


def test_of_an_owners_reports_of_a_version_the_newest_is_kept(harness: Harness) -> None:
    """No quota counts them: the token of one namespace could fill the store."""
    harness.validate(REF)
    collect(harness)
    before = states(harness)
    owner = harness.actor("work", "push", namespaces=["acme"], name="acme-worker")
    for number in range(3):
        owner.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=REF))
        fail = [Finding.of("error", "smoke.no_effect", "", f"changes nothing, test {number}")]
        harness.validate(REF, fail, by=owner)
    reports = [v.report for v in harness.admin.version(REF).verdicts if v.check == "smoke" and v.by_owner]
    assert len(reports) == 1
    collect(harness)
    collect(harness)
    assert states(harness).keys() - before.keys() == set(reports)
    assert owner.report(REF, Digest(reports[0] or "")).findings[0].message == "changes nothing, test 2"
    assert check(harness)[-1].findings == []
    with harness.session() as session:
        own = [row for row in rows(session, VerdictRow) if row.by_owner and row.check == "smoke"]
    assert [len(row.findings) for row in sorted(own, key=lambda row: row.id or 0)] == [0, 0, 1], "a megabyte each"


def test_an_owners_report_has_to_fit_into_the_quota(harness: Harness) -> None:
    """They stood outside it: two megabytes for each version."""
    harness.push("acme/other")
    owner = harness.actor("work", "push", namespaces=["acme"], name="acme-worker")
    harness.validate(REF, by=owner)
    with harness.session() as session:
        [size] = [row.size_bytes for row in rows(session, BlobRow) if row.digest == reports_of(harness, REF)[0]]
    used = harness.admin.namespace("acme").used_bytes
    harness.admin.change_namespace("acme", NamespaceSet(quota_bytes=used + size + 10))
    harness.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=REF))
    harness.validate(REF, by=owner)  # it takes the place of the one before it
    before = states(harness)
    with pytest.raises(TooLarge, match=r"the quota of namespace 'acme' is full: .* and this report has"):
        harness.validate("acme/other@1", by=owner)
    assert (states(harness), reports_of(harness, "acme/other@1")) == (before, [])
    harness.give_back([job.id for job in harness.admin.jobs(state="running").items])
    harness.validate("acme/other@1")  # the registry's own is outside of it
    assert len(reports_of(harness, "acme/other@1")) == 1


def reports_of(harness: Harness, ref: str) -> list[Digest]:
    return [verdict.report for verdict in harness.admin.version(ref).verdicts if verdict.report]


def test_a_report_stays_while_an_older_verdict_of_it_counts(harness: Harness) -> None:
    owner = harness.actor("work", namespaces=["acme"], name="acme-worker")
    no = [Finding.of("error", "compat.peft_refused", "", "PEFT refuses it")]
    compat_says(harness, no, by=owner)
    compat_says(harness, no, by=owner)
    harness.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=REF))
    harness.validate(REF, by=owner)
    with harness.session() as session:
        own = [row for row in rows(session, VerdictRow) if row.by_owner]
    reported = [(row.check, row.report is not None) for row in sorted(own, key=lambda row: row.id or 0)]
    assert reported == [
        ("smoke", False), ("compat", False), ("smoke", False), ("compat", True), ("smoke", True)
    ]  # fmt: skip


def test_the_result_of_a_smoke_test_is_small(harness: Harness) -> None:
    """It is stored in the row of the job, which stays."""
    harness.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=REF))
    claimed = harness.admin.claim(ClaimRequest(worker="test"))
    assert claimed is not None
    report = harness.report(harness.admin.version(REF).digest, "tiny-llama")
    request = FinishRequest(lease_token=claimed.lease.token, report=report, result={"text": "x" * 70_000})
    with pytest.raises(TooLarge, match="65536 bytes"):
        harness.admin.finish(claimed.job.id, request)
    harness.admin.finish(claimed.job.id, request.model_copy(update={"result": {"text": "x" * 60_000}}))
