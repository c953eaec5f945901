"""The bucket is older than the database: lost records and tiles are findings, and are rewritten."""

from __future__ import annotations

from datetime import datetime

import pytest
from sqlalchemy import update
from sqlmodel import select

from registry.bases.identity import Identity
from registry.digest import Digest
from registry.events import EventType
from registry.names import AdapterName
from registry.server import audit
from registry.server.actors import TRUSTED
from registry.server.catalog import metadata_backup
from registry.server.catalog import versions as catalog
from registry.server.catalog.metadata_backup import Record, VersionRecord
from registry.server.database import db
from registry.server.database.models import BaseIdentityRow, BaseRow, VersionRow
from registry.server.database.models.owner_rules import AttestationRow
from registry.server.promotion import withdraw
from registry.server.promotion.attestations.attester import Attester
from registry.server.storage.blobs import BlobStore, key_of, write_blob
from tests import samples
from tests.flows.test_restore import fill, lose_the_database, reindex
from tests.harness import Harness, rows
from tests.identities import make_identity, values
from tests.maintenance import check, collect, findings
from tests.snapshot import snapshot

WITHOUT_NORMS = make_identity(values())
WITH_NORMS = WITHOUT_NORMS.model_copy(
    update={"marks": {name: mark.model_copy(update={"norm": 2.0}) for name, mark in WITHOUT_NORMS.marks.items()}}
)


def records(harness: Harness) -> dict[str, bytes]:
    harness.transport.settle()
    return {stat.key: harness.blobs.read(stat.key, 0, stat.size_bytes) for stat in harness.blobs.list("records/")}


def test_lost_records_are_findings_and_are_rewritten_from_the_rows(stored_harness: Harness) -> None:
    fill(stored_harness)
    stored_harness.push("acme/gone")
    stored_harness.admin.delete_adapter("acme/gone")
    collect(stored_harness)
    rows, before = snapshot(stored_harness), records(stored_harness)
    for key in before:
        stored_harness.blobs.delete(key)
    locations = sorted(findings(stored_harness, deep=False))
    versions = ["acme/support@1", "acme/support@2", "acme/support@3", "initech/images@1"]
    others = [*(f"base {row['name']}" for row in rows["base"]), "records/tombstone/acme/gone"]
    assert locations == sorted(f"record.missing {location}" for location in [*versions, *others])
    assert reindex(stored_harness, dry_run=True).records == len(locations)
    assert records(stored_harness) == {}
    assert (reindex(stored_harness).records, reindex(stored_harness).records) == (len(locations), 0)
    written = records(stored_harness)
    assert written.items() <= before.items(), "without the record from before an unyank"
    assert {key.rpartition("/")[0] for key in written} == {key.rpartition("/")[0] for key in before}
    assert findings(stored_harness) == []
    lose_the_database(stored_harness)
    reindex(stored_harness)
    assert snapshot(stored_harness) == rows
    collect(stored_harness)


def test_a_record_from_before_a_withdrawal_counts_as_lost(stored_harness: Harness) -> None:
    stored_harness.push("acme/support")
    collect(stored_harness)
    before = records(stored_harness)
    stored_harness.admin.quarantine("acme/support@1", "poisoned")
    collect(stored_harness)
    for key in list(records(stored_harness)):
        stored_harness.blobs.delete(key)
    for key, data in before.items():
        write_blob(stored_harness.blobs, key, [data], limit_bytes=len(data))
    assert findings(stored_harness) == ["record.missing acme/support@1"]
    assert reindex(stored_harness).records == 1
    assert findings(stored_harness) == []
    lose_the_database(stored_harness)
    reindex(stored_harness)
    assert stored_harness.admin.version("acme/support@1").quarantined_at is not None


def test_a_record_of_an_older_release_counts(stored_harness: Harness) -> None:
    stored_harness.push("acme/support")
    collect(stored_harness)
    (key,) = [stat.key for stat in stored_harness.blobs.list(metadata_backup.VERSIONS)]
    data = records(stored_harness)[key]
    other = VersionRecord.parse(data).model_copy(update={"pushed_by": ""})
    stored_harness.blobs.delete(key)
    metadata_backup._put(stored_harness.blobs, key[:-64], other)
    assert findings(stored_harness) == []
    assert reindex(stored_harness).records == 0


@pytest.mark.parametrize("database_kind", ["postgres"])  # on SQLite transactions that write are serial
def test_a_withdrawal_during_the_first_backup_is_recorded(harness: Harness) -> None:
    harness.add_base()
    harness.push("acme/support")
    harness.transport.settle()

    def set_recorded_at(at: datetime | None) -> None:
        with harness.session(write=True) as session:
            session.connection().execute(update(VersionRow).values(recorded_at=at))

    set_recorded_at(None)
    name = AdapterName("acme", "support")
    with harness.session(write=True) as session:
        catalog.find(session, TRUSTED, name, 1)
        set_recorded_at(db.now())
        withdraw.change_state(session, TRUSTED, name, 1, "yank", "diverged")
    assert harness.admin.version("acme/support@1").yank_reason == "diverged"
    with harness.session() as session:
        assert [row.recorded_at for row in rows(session, VersionRow)] == [None]
    collect(harness)
    assert findings(harness) == []


def test_a_lost_attestation_of_the_registry_is_made_again(stored_harness: Harness) -> None:
    stored_harness.push("acme/support")
    log = stored_harness.app.state.audit_log
    log.step()
    with stored_harness.session() as session:
        (lost,) = [Digest(row.digest) for row in rows(session, AttestationRow)]
    stored_harness.blobs.delete(key_of(lost))
    assert findings(stored_harness) == [f"blob.damaged {lost}"]
    (message,) = [f.message for page in check(stored_harness, deep=False) for f in page.findings]
    assert "an attestation (push) of a version refers to it" in message
    Attester(stored_harness.engine, stored_harness.blobs, lambda: log.keys).attest_until(log.latest.size)
    assert findings(stored_harness) == []


def test_lost_tiles_of_the_audit_log_are_findings_and_are_rewritten(stored_harness: Harness) -> None:
    for _ in range(2):
        stored_harness.push("acme/support")
    with stored_harness.session(write=True) as session:
        for at in range(300):
            audit.append(session, TRUSTED, EventType.ADAPTER_CREATE, f"n{at}")
    stored_harness.app.state.audit_log.step()
    before = tiles_of(stored_harness)
    lost = [
        "tile/0/000",
        "tile/entries/000",
        next(p for p in before if p.startswith("tile/entries/001")),
        "tile/1/000.p/1",
    ]
    for stat in list(stored_harness.blobs.list("audit/")):
        if stat.key[len("audit/") :].rpartition("/")[0] in lost:
            stored_harness.blobs.delete(stat.key)
    assert len(tiles_of(stored_harness)) == len(before) - len(lost)
    assert sorted(findings(stored_harness, deep=False)) == sorted(f"audit.tile_missing {path}" for path in lost)
    assert reindex(stored_harness, dry_run=True).records == 3, "entries and their hashes are one"
    stored_harness.app.state.audit_log.step()
    assert len(tiles_of(stored_harness)) == len(before) - len(lost)
    assert reindex(stored_harness).records == 3
    stored_harness.app.state.audit_log.step()
    assert before.items() <= tiles_of(stored_harness).items()
    assert findings(stored_harness) == []
    assert reindex(stored_harness).records == 0


def tiles_of(harness: Harness) -> dict[str, bytes]:
    stats = [(stat.key[len("audit/") :].rpartition("/")[0], stat) for stat in harness.blobs.list("audit/")]
    return {path: harness.blobs.read(stat.key, 0, stat.size_bytes) for path, stat in stats}


@pytest.mark.parametrize("before", [None, WITHOUT_NORMS], ids=["comes", "grows"])
def test_an_identity_that_changes_during_the_backup_of_its_base_is_recorded(
    stored_harness: Harness, monkeypatch: pytest.MonkeyPatch, before: Identity | None
) -> None:
    name = stored_harness.add_base(samples.llama("young")).name
    if before is not None:
        stored_harness.admin.identify_base(name, before)
    collect(stored_harness)
    with stored_harness.session(write=True) as session:
        session.connection().execute(update(BaseRow).values(recorded_at=None))
    put = metadata_backup._put
    interrupted_at: list[str] = []

    def interrupt(blobs: BlobStore, folder: str, record: Record) -> str:
        key = put(blobs, folder, record)
        if not interrupted_at:
            interrupted_at.append(key)
            stored_harness.admin.identify_base(name, WITH_NORMS)
        return key

    monkeypatch.setattr(metadata_backup, "_put", interrupt)
    metadata_backup.write_missing(stored_harness.engine, stored_harness.blobs, limit=10)
    monkeypatch.undo()
    assert interrupted_at
    collect(stored_harness)
    lose_the_database(stored_harness)
    reindex(stored_harness)
    with stored_harness.session() as session:
        row = session.exec(select(BaseIdentityRow)).one()
        assert Identity.model_validate_json(row.identity) == WITH_NORMS
