"""Deletion of versions: what prevents it, what a deleted version still returns, restoring it, and erasing its files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from sqlmodel import col, select

from registry.api.catalog import MetadataChange
from registry.api.jobs import ClaimRequest, FinishRequest, JobSubmit
from registry.api.maintenance import GcRequest
from registry.api.serving import NodeReport, SlotReport, SlotState
from registry.client.audit import Audit
from registry.digest import Digest
from registry.errors import Conflict, Denied, NotFound, Refused
from registry.evaluation.verdicts import Check
from registry.jobs import Kind, State
from registry.server.database.models import VersionFileRow
from registry.server.storage.blobs import key_of
from registry.versions.manifest import Edge, Relation
from tests.bulk import plan_pull
from tests.harness import Harness
from tests.maintenance import collect, findings


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    with Harness(database_url, delete_grace_seconds=0) as harness:
        harness.add_base()
        yield harness


def blobs_of(harness: Harness, ref: str) -> set[Digest]:
    return {file.digest for file in harness.admin.version(ref).files if file.path.endswith(".safetensors")}


def test_a_deleted_version_responds_a_sentence_and_keeps_its_number(harness: Harness) -> None:
    files = harness.files()
    digest = harness.push("acme/support", files).version.digest
    harness.push("acme/support")
    deleted = harness.admin.delete_version("acme/support@1", "private data")
    assert (deleted.delete_reason, deleted.deleted_by) == ("private data", harness.admin.whoami().actor)
    assert harness.admin.delete_version("acme/support@1").deleted_at == deleted.deleted_at
    for ref in ("acme/support@1", f"acme/support@{digest}"):
        for read in (
            harness.admin.version,
            harness.admin.resolve,
            partial(plan_pull, harness.admin),
            harness.admin.lineage,
        ):
            with pytest.raises(
                NotFound, match=r"version 1 of 'acme/support' was deleted on .*: private data"
            ) as caught:
                read(ref)
            assert caught.value.code == "VERSION_DELETED"
    assert [v.number for v in harness.admin.versions("acme/support").items] == [2]
    assert [v.number for v in harness.admin.versions("acme/support", include_deleted=True).items] == [2, 1]
    with pytest.raises(Conflict, match="was deleted") as conflict:
        harness.push("acme/support", files)
    assert (conflict.value.code, conflict.value.next_step) == (
        "VERSION_TOMBSTONED", "adapter delete --undo acme/support@1"
    )  # fmt: skip
    assert harness.push("acme/support").version.number == 3
    assert harness.push("acme/copy", files).created


def test_a_deletion_is_undone_within_the_grace_time(harness: Harness) -> None:
    for _ in range(2):
        harness.push("acme/support")
    harness.admin.yank("acme/support@2", "wrong")
    before = harness.admin.version("acme/support@2")
    harness.admin.delete_version("acme/support@2")
    restored = harness.admin.undelete_version("acme/support@2", "needed")
    assert restored == before
    harness.admin.quarantine("acme/support@2", "an alarm")
    harness.admin.delete_version("acme/support@2")
    assert harness.admin.undelete_version("acme/support@2", "needed").quarantine_reason == "an alarm"
    actions = [event.action for event in Audit(harness.admin).events(0) if event.object == "acme/support@2"]
    assert [a for a in actions if "delete" in a] == ["version.delete", "version.undelete"] * 2


def test_garbage_collection_erases_what_was_deleted_and_only_that(harness: Harness) -> None:
    shared = harness.files()
    harness.push("acme/support", shared)
    harness.push("globex/copy", shared)
    harness.push("acme/support")
    harness.push("acme/support")
    harness.admin.describe("acme/support@2", MetadataChange(tags={"team": "nlp"}))
    own = blobs_of(harness, "acme/support@2")
    digests = blobs_of(harness, "acme/support@1")
    for number in (1, 2):
        harness.admin.delete_version(f"acme/support@{number}")
    assert harness.admin.collect(GcRequest(dry_run=True)).versions_purged == 2
    assert collect(harness).versions_purged == 2
    with harness.session() as session:
        assert session.exec(select(VersionFileRow).where(col(VersionFileRow.version_id) == 3)).all() == []
    assert all(harness.blobs.stat(key_of(digest)) is None for digest in own)
    assert all(harness.blobs.stat(key_of(digest)) is not None for digest in digests)
    assert findings(harness) == []
    with pytest.raises(NotFound, match="its files were erased"):
        harness.admin.undelete_version("acme/support@2", "needed")
    tombstones = harness.admin.versions("acme/support", include_deleted=True).items
    assert [(v.number, v.purged_at is not None, v.verdicts, v.tags) for v in tombstones[1:]] == [
        (2, True, [], {}), (1, True, [], {})
    ]  # fmt: skip
    assert harness.admin.namespace("acme").used_versions == 1
    harness.admin.delete_adapter("acme/support")


def test_what_needs_a_version_is_named(harness: Harness) -> None:
    pushed = harness.push("acme/support").version
    with pytest.raises(Conflict, match="cannot delete acme/support@1: it is the only version of acme/support"):
        harness.admin.delete_version("acme/support@1", "leaked", force=True)
    harness.push("acme/support")
    harness.push("acme/child", parents=[Edge(relation=Relation.CONTINUED, digest=pushed.digest, name="acme/support")])
    harness.admin.promote("acme/support", "canary", "1", generation=0)
    slot = SlotReport(adapter="acme/support", digest=pushed.digest, served_name="s", state=SlotState.SERVING)
    harness.admin.report_node("gpu-1", "vllm", NodeReport(base="tiny-llama", alias="canary", slots=[slot]))
    claimed = harness.admin.claim(ClaimRequest(worker="w"))
    assert claimed is not None
    with pytest.raises(Conflict) as caught:
        harness.admin.delete_version("acme/support@1")
    assert [(f.code, f.location) for f in caught.value.findings] == [
        ("version.alias_points", "acme/support:canary"), ("version.on_node", "gpu-1"),
        ("version.job_runs", claimed.job.id), ("version.has_child", "acme/child@1"),
    ]  # fmt: skip
    assert caught.value.next_step.endswith("or delete it: adapter alias delete acme/support:canary")
    with pytest.raises(Conflict) as planned:
        harness.admin.delete_version("acme/support@1", dry_run=True)
    assert planned.value.to_problem() == caught.value.to_problem()
    plan = harness.admin.delete_adapter("acme/support", dry_run=True)
    assert (plan.name, plan.versions, plan.needs) == ("acme/support", 2, list(caught.value.findings))
    assert [node.node for node in plan.served_on] == ["gpu-1"]
    with pytest.raises(Conflict, match="cannot delete acme/support@1: the alias acme/support:canary points at it"):
        harness.admin.delete_version("acme/support@1", "leaked", force=True)
    harness.admin.promote("acme/support", "canary", "2", generation=1)
    events = list(Audit(harness.admin).events())
    assert harness.admin.delete_version("acme/support@1", force=True, dry_run=True).deleted_at is None
    assert list(Audit(harness.admin).events()) == events
    assert harness.admin.delete_adapter("acme/child", dry_run=True).needs == []
    assert [node.node for node in harness.admin.delete_version("acme/support@1", "leaked", force=True).served_on] == [
        "gpu-1"
    ]
    nodes = harness.admin.lineage("acme/child").nodes
    assert {node.name: node.withdrawn for node in nodes if node.kind == "version"} == {
        "acme/child": "", "acme/support": "deleted"
    }  # fmt: skip
    with pytest.raises(NotFound, match="no earlier version"):
        harness.admin.rollback("acme/support", "canary")
    harness.admin.cancel(claimed.job.id)


def test_a_job_on_a_deleted_version_writes_no_verdict_and_runs_again_after_the_deletion_is_undone(
    harness: Harness,
) -> None:
    digest = harness.push("acme/support").version.digest
    harness.push("acme/support")
    claimed = harness.admin.claim(ClaimRequest(worker="w"))
    assert claimed is not None
    assert claimed.job.subject == "acme/support@1"
    harness.admin.delete_version("acme/support@1", "leaked", force=True)
    done = FinishRequest(lease_token=claimed.lease.token, report=harness.report(digest, "tiny-llama"))
    with pytest.raises(Conflict, match="acme/support@1 was deleted") as caught:
        harness.admin.finish(claimed.job.id, done)
    assert caught.value.code == "LEASE_LOST"
    harness.admin.undelete_version("acme/support@1", "needed")
    assert [v for v in harness.admin.version("acme/support@1").verdicts if v.check == Check.SMOKE] == []
    harness.give_back([claimed.job.id])
    harness.validate("acme/support@1")
    harness.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref="acme/support@1"))
    harness.admin.delete_version("acme/support@1")
    collect(harness)
    states = [job.state for job in harness.admin.jobs(ref="acme/support").items if job.subject == "acme/support@1"]
    assert states == [State.CANCELLED, State.DONE]


def test_main_falls_back_to_the_newest_version_that_is_available(harness: Harness) -> None:
    for _ in range(4):
        harness.push("acme/support")

    def main() -> int:
        assert harness.admin.adapter("acme/support").newest == harness.admin.version("acme/support").number
        return harness.admin.version("acme/support").number

    harness.admin.yank("acme/support@4", "wrong")
    assert main() == 3
    harness.admin.quarantine("acme/support@3", "an alarm")
    assert main() == 2
    harness.admin.delete_version("acme/support@2")
    assert (main(), harness.admin.resolve("acme/support").number) == (1, 1)
    harness.admin.delete_version("acme/support@1", "wrong, too")
    assert main() == 4
    with pytest.raises(Refused, match="was yanked"):
        harness.admin.resolve("acme/support")
    harness.admin.undelete_version("acme/support@1", "needed")
    assert main() == 1
    harness.admin.yank("acme/support@4", "no", undo=True)
    assert main() == 4
    assert harness.admin.history("acme/support", alias="main").moves[0].reason == "unyanked acme/support@4"
    assert findings(harness) == []
    harness.admin.unquarantine("acme/support@3", "a false alarm")
    assert main() == 4


@pytest.mark.security
def test_only_an_owner_deletes_and_children_of_others_are_not_named(harness: Harness) -> None:
    parent = harness.push("acme/support").version
    harness.push("acme/support")
    edge = Edge(relation=Relation.CONTINUED, digest=parent.digest)
    harness.push("globex/secret", parents=[edge])
    promoter = harness.actor("promote", "push", "pull", namespaces=["acme"], name="promoter")
    for act in (promoter.delete_version, promoter.undelete_version):
        with pytest.raises(Denied):
            act("acme/support@1", "mine")
    owner = harness.actor("admin", "pull", namespaces=["acme"], name="owner")
    assert owner.delete_version("acme/support@1").deleted_at is not None
    outsider = harness.actor("admin", "pull", namespaces=["initech"], name="outsider")
    with pytest.raises(NotFound, match="there is no adapter"):
        outsider.version("acme/support@1")
