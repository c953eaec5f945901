"""Recovery: the database is lost or older than the bucket. What a re-index restores, and what it does not."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete

from registry.api.bases import BaseAdd
from registry.api.maintenance import ReindexPage, ReindexRequest
from registry.digest import Digest
from registry.errors import Refused
from registry.server.database import tables
from registry.server.promotion import deletion
from registry.server.storage.blobs import digest_of, key_of, write_blob
from registry.versions.manifest import Edge, Manifest, Relation
from registry.versions.provenance import Provenance
from tests import samples
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
    assert "ref.version_unknown refs/" in findings(stored_harness, deep=False)
    assert collect(stored_harness).orphans_deleted == 0, "GC keeps what a re-index needs"
    assert reindex(stored_harness, dry_run=True).versions == 4
    assert snapshot(stored_harness)["version"] == []
    page = reindex(stored_harness)
    assert (page.bases, page.versions, page.findings) == (2, 4, [])
    assert snapshot(stored_harness) == before
    again = reindex(stored_harness)
    assert snapshot(stored_harness) == before
    assert (again.bases, again.versions, again.findings) == (0, 0, [])
    assert {f.partition(" ")[0] for f in findings(stored_harness)} == {"blob.orphan"}, "the report of a lost verdict"
    assert collect(stored_harness).orphans_deleted == 1
    assert findings(stored_harness) == []


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
    assert "ref.version_unknown refs/" in locations
    assert {f.partition(" ")[0] for f in locations} == {"ref.version_unknown", "blob.orphan"}
    assert reindex(harness).versions == 1
    version = harness.admin.version("acme/support")
    assert (version.number, version.digest, version.message) == (2, later.version.digest, "after the backup")
    assert findings(harness) == []


def test_a_version_without_its_bytes_is_not_imported_and_lists_what_is_missing(stored_harness: Harness) -> None:
    files = stored_harness.files()
    stored_harness.push("acme/support", files)
    stored_harness.push("acme/support")
    collect(stored_harness)
    weights, data = Digest.of(files[samples.WEIGHTS]), files[samples.WEIGHTS]
    stored_harness.blobs.delete(key_of(weights))
    lose_the_database(stored_harness)
    page = reindex(stored_harness, dry_run=True)
    assert [(f.code, f.location) for f in page.findings] == [("blob.bytes_missing", "acme/support@1")]
    assert samples.WEIGHTS in page.findings[0].message
    write_blob(stored_harness.blobs, key_of(weights), [data], limit_bytes=len(data))
    page = reindex(stored_harness)
    assert (page.versions, page.findings) == (2, [])
    assert stored_harness.admin.version("acme/support@1").damaged == []


def test_a_damaged_ref_is_a_finding_and_the_others_are_imported(stored_harness: Harness) -> None:
    stored_harness.push("acme/support")
    stored_harness.push("acme/support")
    collect(stored_harness)
    first = next(stat.key for stat in stored_harness.blobs.list("refs/acme/support/1/"))
    stored_harness.blobs.delete(first)
    data = b'{"not": "a ref"}'
    wrong = first.rpartition("/")[0] + "/" + Digest.of(data).hex
    write_blob(stored_harness.blobs, wrong, [data], limit_bytes=100)
    lose_the_database(stored_harness)
    page = reindex(stored_harness)
    assert ([(f.code, f.location) for f in page.findings], page.versions) == ([("ref.damaged", "acme/support@1")], 1)
    assert stored_harness.admin.version("acme/support").number == 2
    assert stored_harness.push("acme/support").version.number == 3, "no number gets another version"
    delete_unreferenced_blobs(stored_harness)
    collect(stored_harness)
    assert findings(stored_harness) == []


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


def test_withdrawals_are_imported_with_their_versions(stored_harness: Harness) -> None:
    for _ in range(5):
        stored_harness.push("acme/support")
    stored_harness.admin.yank("acme/support@2", "diverged")
    stored_harness.admin.quarantine("acme/support@3", "poisoned")
    stored_harness.admin.delete_version("acme/support@4", "private data")
    assert deletion.purge_expired(stored_harness.engine, timedelta(0)) == 1
    stored_harness.admin.delete_version("acme/support@5", "later")
    stored_harness.transport.settle()
    collect(stored_harness, grace=3600)
    lose_the_database(stored_harness)
    assert reindex(stored_harness).findings == []
    versions = stored_harness.admin.versions("acme/support", include_deleted=True).items
    assert [(v.number, v.yank_reason, v.quarantined_at is not None, v.delete_reason) for v in versions] == [
        (5, "", True, "later"), (3, "", True, ""), (2, "diverged", False, ""), (1, "", False, ""),
    ]  # fmt: skip
    assert stored_harness.admin.resolve("acme/support").number == 1
    with pytest.raises(Refused):
        stored_harness.admin.resolve("acme/support@3")
    assert stored_harness.push("acme/support").version.number == 6
    collect(stored_harness)
    assert findings(stored_harness) == []


def test_refs_and_bases_that_the_bucket_has_lost_are_written_again(stored_harness: Harness) -> None:
    fill(stored_harness)
    stored_harness.transport.settle()
    before = {stat.key for folder in ("refs/", "bases/") for stat in stored_harness.blobs.list(folder)}
    for key in before:
        stored_harness.blobs.delete(key)
    assert reindex(stored_harness, dry_run=True).rewritten == len(before) == 6
    assert reindex(stored_harness).rewritten == 6
    assert {stat.key for folder in ("refs/", "bases/") for stat in stored_harness.blobs.list(folder)} == before
    assert reindex(stored_harness).rewritten == 0


def test_a_manifest_is_a_blob_that_lives_as_long_as_its_version(stored_harness: Harness) -> None:
    digest = stored_harness.push("acme/support").version.digest
    kept = stored_harness.push("acme/support").version.digest
    collect(stored_harness)
    for each in (digest, kept):
        manifest = b"".join(stored_harness.blobs.open(key_of(Digest(each))))
        assert Digest.of(manifest) == each
        assert Manifest.parse(manifest).digest == each
    stored_harness.admin.delete_version("acme/support@1", "private data")
    assert deletion.purge_expired(stored_harness.engine, timedelta(0)) == 1
    collect(stored_harness)
    assert stored_harness.blobs.stat(key_of(Digest(digest))) is None
    assert stored_harness.blobs.stat(key_of(Digest(kept))) is not None
