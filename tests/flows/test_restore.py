"""Recovery: the database is lost or older than the bucket. What a re-index restores, and what it does not."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from sqlalchemy import Table, delete, text, update
from sqlmodel import select

from registry.api.bases import BaseAdd
from registry.api.maintenance import ReindexPage, ReindexRequest
from registry.digest import Digest
from registry.errors import Conflict, Corrupt
from registry.server.catalog import metadata_backup
from registry.server.catalog.metadata_backup import Record
from registry.server.database import tables
from registry.server.database.models import BaseEdgeRow, BlobRow, TokenRow, VersionRow
from registry.server.database.models.namespaces import TakenNameRow
from registry.server.promotion import removal
from registry.server.storage.blobs import BlobStore, digest_of, key_of, write_blob
from registry.versions.manifest import Edge, Relation
from registry.versions.provenance import Provenance
from tests import samples
from tests.access.test_at_once import waiting
from tests.base_specs import spec_of
from tests.harness import Harness
from tests.identities import make_identity, values
from tests.maintenance import collect, findings, states
from tests.snapshot import snapshot

KEPT = {"token", "alembic_version"}
"""Tables that stay, so that the client can still sign in."""


def reindex(harness: Harness, *, dry_run: bool = False) -> ReindexPage:
    page = harness.admin.reindex(ReindexRequest(dry_run=dry_run))
    assert page.next_cursor == ""
    return page


def lose_the_database(harness: Harness) -> None:
    harness.transport.settle()
    with harness.session(write=True) as session:
        for table in reversed(tables.metadata.sorted_tables):
            if table.name not in KEPT:
                session.connection().execute(delete(table))


def fill(harness: Harness) -> None:
    """Add versions with parents, verdicts, reports and aliases, and withdraw one."""
    card = b"---\ndatasets:\n- acme/chats\n---\n### Framework versions\n\n- PEFT 0.18.0\n"
    parent = harness.push("acme/support", {**harness.files(), "README.md": card}, message="first").version
    harness.validate("acme/support@1")
    fused = Edge(relation=Relation.FUSED, digest=parent.digest, name="acme/support@1")
    harness.admin.add_base(BaseAdd(spec=spec_of(samples.llama("tiny-fused", seed=2)), parents=[fused]))
    declared = Provenance.read({"datasets": [{"uri": "s3://d/t"}], "run": {"tool": "mlflow", "id": "7"}})
    harness.push(
        "acme/support",
        provenance=declared,
        parents=[Edge(relation=Relation.CONTINUED, digest=parent.digest, name="acme/support@1")],
    )
    harness.push("initech/images", alias="canary")
    harness.push("acme/support")
    harness.admin.yank("acme/support@2", "diverged")
    harness.admin.yank("acme/support@1", "a mistake")
    harness.transport.settle()  # recorded as yanked
    harness.admin.yank("acme/support@1", "it was the other run", undo=True)
    collect(harness, grace=3600)


def test_a_reindex_restores_versions_files_and_lineage_from_the_bucket(stored_harness: Harness) -> None:
    fill(stored_harness)
    before = snapshot(stored_harness)
    assert len(before["version"]) == 4
    assert {row["node"] for row in before["input"]} == {
        "dataset:hf://datasets/acme/chats", "dataset:s3://d/t", "run:mlflow:7",
    }  # fmt: skip
    assert len(before["base_edge"]) == 1
    lose_the_database(stored_harness)
    assert "record.version_unknown records/" in findings(stored_harness, deep=False)
    assert collect(stored_harness).orphans_deleted == 0, "GC keeps what a re-index needs"
    assert reindex(stored_harness, dry_run=True).versions == 4
    assert snapshot(stored_harness)["version"] == []
    page = reindex(stored_harness)
    assert (page.bases, page.versions, page.findings) == (2, 4, [])
    assert snapshot(stored_harness) == before
    with stored_harness.session(write=True) as session:  # as an older server that still runs leaves it
        session.connection().execute(delete(BaseEdgeRow))
    again = reindex(stored_harness)
    assert snapshot(stored_harness) == before
    assert (again.bases, again.versions, again.findings) == (0, 0, [])
    assert {f.partition(" ")[0] for f in findings(stored_harness)} == {"blob.orphan"}, "the report of a lost verdict"
    assert collect(stored_harness).orphans_deleted == 1
    assert findings(stored_harness) == []


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
def test_a_reindex_waits_for_blobs_before_it_locks_counters_as_a_push_does(harness: Harness) -> None:
    harness.add_base()
    for _ in range(2):
        harness.push("acme/support")
    harness.transport.settle()
    version: Table = VersionRow.__table__  # type: ignore[attr-defined]
    with harness.session(write=True) as session:
        for statement in removal._delete_with_references(version, version.c.number == 1):
            session.connection().execute(statement)
    reindexing = threading.Thread(target=reindex, args=(harness,))
    counters = text(
        "SELECT count(*) FROM pg_locks JOIN pg_database ON database = pg_database.oid "
        "WHERE datname = current_database() AND relation = 'namespace_usage'::regclass AND mode LIKE 'Row%'"
    )
    with harness.session(write=True) as session:
        session.exec(select(BlobRow.digest).with_for_update()).all()
        reindexing.start()
        waiting(harness)
        assert session.connection().execute(counters).scalar_one() == 0
    reindexing.join()
    assert [version.number for version in harness.admin.versions("acme/support").items] == [2, 1]


def test_after_a_reindex_only_aliases_and_other_verdicts_are_missing(stored_harness: Harness) -> None:
    fill(stored_harness)
    lose_the_database(stored_harness)
    reindex(stored_harness)
    newest = stored_harness.admin.version("acme/support")
    assert (newest.number, newest.aliases) == (3, ["main"])
    assert [(v.check, v.outcome) for v in newest.verdicts] == [("compat", "pass"), ("weights", "pass")]
    assert stored_harness.admin.version("acme/support@2").yank_reason == "diverged"
    assert stored_harness.admin.version("acme/support@1").yanked_at is None
    assert {e.relation for e in stored_harness.admin.lineage("acme/support@2").edges} >= {"continued"}
    assert [a.alias for a in stored_harness.admin.aliases("initech/images").items] == ["main"]
    assert stored_harness.push("acme/support").version.number == 4
    stored_harness.admin.promote("acme/support", "canary", "4", generation=0)
    collect(stored_harness)
    assert findings(stored_harness) == []


def test_a_reindex_compares_a_version_with_the_other_bases_as_its_push_did(harness: Harness) -> None:
    for name, numbers in (("tiny-llama", values()), ("org/other", values(1))):
        spec = spec_of(samples.llama(name))
        harness.bases[name] = spec
        harness.admin.add_base(BaseAdd(spec=spec, identity=make_identity(numbers)))
    harness.admin.set_base_aliases("tiny-llama", ["hub/Llama-Tiny"])
    for adapter, claim in (("acme/of-alias", "hub/Llama-Tiny"), ("acme/of-other", "org/other")):
        harness.push(adapter, harness.files(config={"base_model_name_or_path": claim}), base="tiny-llama")

    def outcomes() -> list[str]:
        versions = [harness.admin.version(adapter) for adapter in ("acme/of-alias", "acme/of-other")]
        return [verdict.outcome for version in versions for verdict in version.verdicts if verdict.check == "compat"]

    assert outcomes() == ["pass", "fail"]
    collect(harness)
    lose_the_database(harness)
    assert reindex(harness).versions == 2
    assert outcomes() == ["pass", "fail"]


def test_versions_newer_than_the_backup_are_findings_and_are_restored(
    database_kind: str, harness: Harness, tmp_path: Path
) -> None:
    if database_kind != "sqlite":
        pytest.skip("the backup of this test is a copy of a file")
    harness.add_base()
    harness.push("acme/support")
    collect(harness)
    file = Path(str(harness.engine.url.database))
    harness.engine.dispose()
    shutil.copyfile(file, tmp_path / "backup.db")
    later = harness.push("acme/support", message="after the backup")
    collect(harness)
    harness.engine.dispose()
    for name in (file.name, f"{file.name}-wal", f"{file.name}-shm"):
        (file.parent / name).unlink(missing_ok=True)
    shutil.copyfile(tmp_path / "backup.db", file)
    locations = findings(harness, deep=False)
    assert "record.version_unknown records/" in locations
    assert {f.partition(" ")[0] for f in locations} == {"record.version_unknown", "blob.orphan"}
    assert reindex(harness).versions == 1
    version = harness.admin.version("acme/support")
    assert (version.number, version.digest, version.message) == (2, later.version.digest, "after the backup")
    assert findings(harness) == []


def test_a_version_without_its_bytes_is_restored_and_lists_what_is_missing(stored_harness: Harness) -> None:
    files = stored_harness.files()
    stored_harness.push("acme/support", files)
    collect(stored_harness)
    weights = Digest.of(files[samples.WEIGHTS])
    stored_harness.blobs.delete(key_of(weights))
    lose_the_database(stored_harness)
    page = reindex(stored_harness)
    assert [(f.code, f.location) for f in page.findings] == [
        ("blob.bytes_missing", f"acme/support@1 {samples.WEIGHTS}")
    ]
    assert stored_harness.admin.version("acme/support").damaged == [samples.WEIGHTS]
    assert findings(stored_harness, deep=False) == [f"blob.damaged {weights}"]
    link = next(f for f in stored_harness.admin.resolve("acme/support").files if f.path == samples.WEIGHTS)
    with pytest.raises(Corrupt), stored_harness.admin.read(link):
        pass
    assert stored_harness.push("acme/support", files).version.damaged == []
    assert findings(stored_harness) == []


def test_a_damaged_record_is_a_finding_and_the_others_are_restored(stored_harness: Harness) -> None:
    stored_harness.push("acme/support")
    stored_harness.push("acme/support")
    collect(stored_harness)
    first = next(stat.key for stat in stored_harness.blobs.list("records/version/acme/support/1/"))
    stored_harness.blobs.delete(first)
    data = b'{"not": "a record"}'
    wrong = first.rpartition("/")[0] + "/" + Digest.of(data).hex
    write_blob(stored_harness.blobs, wrong, [data], limit_bytes=100)
    lose_the_database(stored_harness)
    page = reindex(stored_harness)
    assert ([f.code for f in page.findings], page.versions) == (["record.damaged"], 1)
    assert stored_harness.admin.version("acme/support").number == 2
    assert any(f.startswith("version.numbers_broken") for f in findings(stored_harness, deep=False))
    delete_unreferenced_blobs(stored_harness)


def delete_unreferenced_blobs(harness: Harness) -> None:
    digests = states(harness)
    for stat in list(harness.blobs.list("blobs/")):
        if str(digest_of(stat.key)) not in digests:
            harness.blobs.delete(stat.key)


def test_a_version_number_that_was_reused_is_a_finding_and_is_not_changed(stored_harness: Harness) -> None:
    stored_harness.push("acme/support")
    collect(stored_harness)
    lose_the_database(stored_harness)
    stored_harness.add_base()
    other = stored_harness.push("acme/support")
    page = reindex(stored_harness)
    assert page.versions == 0
    assert stored_harness.admin.version("acme/support@1").digest == other.version.digest
    delete_unreferenced_blobs(stored_harness)


def test_a_late_backup_deletes_no_newer_record(stored_harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version is yanked, and its record written, while its first record is being written."""
    stored_harness.push("acme/support")
    stored_harness.push("acme/support")
    collect(stored_harness)
    with stored_harness.session(write=True) as session:
        session.connection().execute(update(VersionRow).values(recorded_at=None))
    put = metadata_backup._put
    interrupted_at: list[str] = []

    def interrupt(blobs: BlobStore, folder: str, record: Record) -> str:
        if not interrupted_at:
            interrupted_at.append(folder)
            stored_harness.admin.yank("acme/support@1", "diverged")
            metadata_backup.write_missing(stored_harness.engine, blobs, limit=10)
        return put(blobs, folder, record)

    monkeypatch.setattr(metadata_backup, "_put", interrupt)
    metadata_backup.write_missing(stored_harness.engine, stored_harness.blobs, limit=10)
    monkeypatch.undo()
    assert interrupted_at
    collect(stored_harness)
    assert findings(stored_harness) == []
    lose_the_database(stored_harness)
    assert reindex(stored_harness).versions == 2
    assert stored_harness.admin.version("acme/support@1").yank_reason == "diverged"


def test_tokens_are_never_in_the_bucket(stored_harness: Harness) -> None:
    fill(stored_harness)
    with stored_harness.session() as session:
        secrets = [row.secret_sha256 for row in session.exec(select(TokenRow)).all()]
    for stat in stored_harness.blobs.list("records/"):
        data = stored_harness.blobs.read(stat.key, 0, stat.size_bytes)
        assert not any(secret.encode() in data for secret in [*secrets, stored_harness.secret])
    assert TokenRow.__tablename__ in KEPT


def end_some_names(harness: Harness) -> None:
    """Delete an adapter, move one, delete a namespace."""
    for name in ("acme/support", "acme/images", "initech/images"):
        harness.push(name)
    harness.admin.delete_adapter("acme/support")
    harness.admin.rename("acme/images", "acme/photos")
    harness.admin.delete_adapter("initech/images")
    harness.admin.delete_namespace("initech")
    harness.transport.settle()


ENDED = ("acme/support", "acme/supp0rt", "acme/images", "initech/anything")


def test_tombstones_are_restored_from_the_bucket(stored_harness: Harness) -> None:
    end_some_names(stored_harness)
    lose_the_database(stored_harness)
    assert "record.version_unknown records/" in findings(stored_harness, deep=False)
    assert reindex(stored_harness, dry_run=True).tombstones == 4
    page = reindex(stored_harness)
    assert (page.versions, page.tombstones, page.findings) == (1, 4, [])
    assert stored_harness.admin.version("acme/photos").number == 1
    for name in ENDED:
        with pytest.raises(Conflict) as refusal:
            stored_harness.push(name)
        assert refusal.value.code == "NAME_TOMBSTONED", name
    again = reindex(stored_harness)
    assert (again.versions, again.tombstones, again.findings) == (0, 0, [])
    collect(stored_harness)
    assert findings(stored_harness) == []


def test_a_deleted_name_that_a_backup_restored_is_a_finding_and_stays(stored_harness: Harness) -> None:
    stored_harness.push("acme/support")
    stored_harness.admin.delete_adapter("acme/support")
    stored_harness.transport.settle()
    collect(stored_harness)
    lose_the_database(stored_harness)
    stored_harness.add_base()
    version = stored_harness.push("acme/support").version
    page = reindex(stored_harness)
    assert [(f.code, f.location) for f in page.findings] == [("record.name_in_use", "acme/support")]
    assert stored_harness.admin.version("acme/support").digest == version.digest
    stored_harness.admin.delete_adapter("acme/support")
    stored_harness.transport.settle()
    assert reindex(stored_harness).findings == []


def test_gc_records_a_tombstone_that_the_store_could_not_take(stored_harness: Harness) -> None:
    end_some_names(stored_harness)
    for stat in list(stored_harness.blobs.list(metadata_backup.TOMBSTONES)):
        stored_harness.blobs.delete(stat.key)
    with stored_harness.session(write=True) as session:
        session.connection().execute(update(TakenNameRow).values(recorded_at=None))
    collect(stored_harness)
    folders = sorted(stat.key.rpartition("/")[0] for stat in stored_harness.blobs.list(metadata_backup.TOMBSTONES))
    names = ("acme/images", "acme/support", "initech", "initech/images")
    assert folders == [f"records/tombstone/{name}" for name in names]
