"""Deletion of versions: what prevents it, what a deleted version answers, restoring it, and erasing its files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlmodel import col, select

from registry.api.catalog import MetadataChange
from registry.api.jobs import ClaimRequest
from registry.api.maintenance import GcRequest, ReindexRequest
from registry.api.serving import NodeReport, SlotReport, SlotState
from registry.client.audit import Audit
from registry.digest import Digest
from registry.errors import Conflict, Denied, NotFound, Refused
from registry.manifest import Edge, Relation
from registry.server.catalog import metadata_backup
from registry.server.database.models import AdapterRow, VersionFileRow, VersionRow
from registry.server.promotion import removal
from registry.server.storage.blobs import key_of
from tests.maintenance import collect, findings
from tests.world import World


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with World(database_url, delete_grace_seconds=0) as made:
        made.add_base()
        yield made


def blobs_of(world: World, ref: str) -> set[Digest]:
    return {file.digest for file in world.admin.version(ref).files if file.path.endswith(".safetensors")}


def test_a_deleted_version_answers_a_sentence_and_keeps_its_number(world: World) -> None:
    files = world.files()
    digest = world.push("acme/support", files).version.digest
    world.push("acme/support")
    deleted = world.admin.delete_version("acme/support@1", "private data")
    assert (deleted.delete_reason, deleted.deleted_by) == ("private data", world.admin.whoami().actor)
    assert world.admin.delete_version("acme/support@1").deleted_at == deleted.deleted_at
    for ref in ("acme/support@1", f"acme/support@{digest}"):
        for read in (world.admin.version, world.admin.resolve, world.admin.plan_pull, world.admin.lineage):
            with pytest.raises(
                NotFound, match=r"version 1 of 'acme/support' was deleted on .*: private data"
            ) as caught:
                read(ref)
            assert caught.value.code == "VERSION_DELETED"
    assert [v.number for v in world.admin.versions("acme/support").items] == [2]
    assert [v.number for v in world.admin.versions("acme/support", include_deleted=True).items] == [2, 1]
    with pytest.raises(Conflict, match="was deleted") as conflict:
        world.push("acme/support", files)
    assert (conflict.value.code, conflict.value.next_step) == (
        "VERSION_TOMBSTONED", "adapter delete --undo acme/support@1"
    )  # fmt: skip
    assert world.push("acme/support").version.number == 3
    assert world.push("acme/copy", files).created


def test_a_deletion_is_undone_within_the_grace_time(world: World) -> None:
    for _ in range(2):
        world.push("acme/support")
    world.admin.yank("acme/support@2", "wrong")
    before = world.admin.version("acme/support@2")
    world.admin.delete_version("acme/support@2")
    restored = world.admin.undelete_version("acme/support@2", "needed")
    assert restored == before
    world.admin.quarantine("acme/support@2", "an alarm")
    world.admin.delete_version("acme/support@2")
    assert world.admin.undelete_version("acme/support@2", "needed").quarantine_reason == "an alarm"
    actions = [event.action for event in Audit(world.admin).events(0) if event.object == "acme/support@2"]
    assert [a for a in actions if "delete" in a] == ["version.delete", "version.undelete"] * 2


def test_garbage_collection_erases_what_was_deleted_and_only_that(world: World) -> None:
    shared = world.files()
    world.push("acme/support", shared)
    world.push("globex/copy", shared)
    world.push("acme/support")
    world.push("acme/support")
    world.admin.describe("acme/support@2", MetadataChange(tags={"team": "nlp"}))
    own = blobs_of(world, "acme/support@2")
    kept = blobs_of(world, "acme/support@1")
    for number in (1, 2):
        world.admin.delete_version(f"acme/support@{number}")
    assert world.admin.collect(GcRequest(dry_run=True)).versions_purged == 2
    assert collect(world).versions_purged == 2
    with world.session() as session:
        assert session.exec(select(VersionFileRow).where(col(VersionFileRow.version_id) == 3)).all() == []
    assert all(world.blobs.stat(key_of(digest)) is None for digest in own)
    assert all(world.blobs.stat(key_of(digest)) is not None for digest in kept)
    assert findings(world) == []
    with pytest.raises(NotFound, match="its files were erased"):
        world.admin.undelete_version("acme/support@2", "needed")
    tombstones = world.admin.versions("acme/support", include_deleted=True).items
    assert [(v.number, v.purged_at is not None, v.verdicts, v.tags) for v in tombstones[1:]] == [
        (2, True, [], {}), (1, True, [], {})
    ]  # fmt: skip
    assert world.admin.namespace("acme").used_versions == 1
    world.admin.delete_adapter("acme/support")


def test_what_needs_a_version_is_named(world: World) -> None:
    pushed = world.push("acme/support").version
    with pytest.raises(Conflict, match="is the only version of its adapter"):
        world.admin.delete_version("acme/support@1", force=True)
    world.push("acme/support")
    world.push("acme/child", parents=[Edge(relation=Relation.CONTINUED, digest=pushed.digest, name="acme/support")])
    world.admin.promote("acme/support", "canary", "1", generation=0)
    slot = SlotReport(adapter="acme/support", digest=pushed.digest, served_name="s", state=SlotState.SERVING)
    world.admin.report_node("gpu-1", "vllm", NodeReport(base="tiny-llama", alias="canary", slots=[slot]))
    claimed = world.admin.claim(ClaimRequest(worker="w"))
    assert claimed is not None
    with pytest.raises(Conflict) as caught:
        world.admin.delete_version("acme/support@1")
    assert [(f.code, f.location) for f in caught.value.findings] == [
        ("version.alias_points", "acme/support:canary"), ("version.on_node", "gpu-1"),
        ("version.job_runs", claimed.job.id), ("version.has_child", "acme/child@1"),
    ]  # fmt: skip
    assert caught.value.next_step.startswith("move it first: adapter rollback acme/support:canary")
    with pytest.raises(Conflict, match="is where alias 'canary' points"):
        world.admin.delete_version("acme/support@1", force=True)
    world.admin.promote("acme/support", "canary", "2", generation=1)
    assert [node.node for node in world.admin.delete_version("acme/support@1", force=True).served_on] == ["gpu-1"]
    nodes = world.admin.lineage("acme/child").nodes
    assert {node.name: node.withdrawn for node in nodes if node.kind == "version"} == {
        "acme/child": "", "acme/support": "deleted"
    }  # fmt: skip
    with pytest.raises(NotFound, match="no earlier version"):
        world.admin.rollback("acme/support", "canary")
    world.admin.cancel(claimed.job.id)


def test_main_falls_back_to_the_newest_version_that_is_available(world: World) -> None:
    for _ in range(4):
        world.push("acme/support")

    def main() -> int:
        assert world.admin.adapter("acme/support").newest == world.admin.version("acme/support").number
        return world.admin.version("acme/support").number

    world.admin.yank("acme/support@4", "wrong")
    assert main() == 3
    world.admin.quarantine("acme/support@3", "an alarm")
    assert main() == 2
    world.admin.delete_version("acme/support@2")
    assert (main(), world.admin.resolve("acme/support").number) == (1, 1)
    world.admin.delete_version("acme/support@1", "wrong, too")
    assert main() == 4
    with pytest.raises(Refused, match="was yanked"):
        world.admin.resolve("acme/support")
    world.admin.undelete_version("acme/support@1", "needed")
    assert main() == 1
    world.admin.yank("acme/support@4", "no", undo=True)
    assert main() == 4
    assert world.admin.history("acme/support", alias="main").moves[0].reason == "4: version.unyank"
    assert findings(world) == []
    world.admin.unquarantine("acme/support@3", "a false alarm")
    assert main() == 4


@pytest.mark.security
def test_only_an_owner_deletes_and_children_of_others_are_not_named(world: World) -> None:
    parent = world.push("acme/support").version
    world.push("acme/support")
    edge = Edge(relation=Relation.CONTINUED, digest=parent.digest)
    world.push("globex/secret", parents=[edge])
    promoter = world.actor("promote", "push", "pull", namespaces=["acme"], name="promoter")
    for act in (promoter.delete_version, promoter.undelete_version):
        with pytest.raises(Denied):
            act("acme/support@1", "mine")
    owner = world.actor("admin", "pull", namespaces=["acme"], name="owner")
    assert owner.delete_version("acme/support@1").deleted_at is not None
    outsider = world.actor("admin", "pull", namespaces=["initech"], name="outsider")
    with pytest.raises(NotFound, match="there is no adapter"):
        outsider.version("acme/support@1")


def test_deletions_survive_the_loss_of_the_database(world: World) -> None:
    for _ in range(3):
        world.push("acme/support")
    world.admin.delete_version("acme/support@1", "private data")
    collect(world)
    world.admin.delete_version("acme/support@3", "later")
    metadata_backup.write_missing(world.engine, world.blobs, limit=100)
    with world.session(write=True) as session:
        table = AdapterRow.__table__  # type: ignore[attr-defined]
        for statement in removal._delete_with_references(table, table.c.id > 0):
            session.connection().execute(statement)
    assert world.admin.reindex(ReindexRequest()).versions == 3
    restored = world.admin.versions("acme/support", include_deleted=True).items
    assert [(v.number, v.delete_reason, v.purged_at is not None) for v in restored] == [
        (3, "later", False), (2, "", False), (1, "private data", True)
    ]  # fmt: skip
    assert world.admin.version("acme/support").number == 2
    assert world.admin.undelete_version("acme/support@3", "needed").files
    with world.session(write=True) as session:  # a backup of the database from before the deletion
        row = session.exec(select(VersionRow).where(VersionRow.number == 1)).one()
        row.sqlmodel_update({"deleted_at": None, "purged_at": None, "quarantined_at": None, "quarantine": 0})
        session.add(row)
    world.admin.reindex(ReindexRequest())
    with pytest.raises(NotFound, match="private data"):
        world.admin.version("acme/support@1")
