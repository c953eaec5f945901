"""Every column of a version survives the loss of the database: it is in the record, or it can be derived."""

from __future__ import annotations

from datetime import UTC, datetime

from registry.digest import Digest
from registry.server.catalog import metadata_backup
from registry.server.catalog.metadata_backup import VersionRecord
from registry.server.database.models import AdapterRow, BaseRow, VersionRow
from registry.server.push import version_rows
from registry.versions.manifest import BaseRef, Descriptor, Manifest
from tests import samples
from tests.base_specs import spec_of
from tests.harness import media_type

NOW = datetime(2026, 5, 3, 14, 5, tzinfo=UTC)
RECORDED = {
    "created_at": NOW, "created_by": "alice", "number": 3, "method": "lora", "rank": 8, "facts": {"rank": 8},
    "message": "first", "yanked_at": NOW, "yank_reason": "diverged", "quarantine": 2,
    "quarantined_at": NOW, "quarantine_reason": "reported", "deleted_at": NOW, "deleted_by": "alice",
    "delete_reason": "erased", "purged_at": NOW,
}  # fmt: skip
"""A value for each recorded column that is not its default."""


def test_every_column_is_recorded_or_derived_or_set_again() -> None:
    kinds = (metadata_backup.RECORDED_COLUMNS, metadata_backup.DERIVED_COLUMNS, metadata_backup.LOCAL_COLUMNS)
    assert frozenset().union(*kinds) == frozenset(VersionRow.model_fields), "add a new column to one of the three"
    assert sum(map(len, kinds)) == len(VersionRow.model_fields), "a column is in two of them"


def test_a_row_is_restored_from_its_record() -> None:
    assert RECORDED.keys() == metadata_backup.RECORDED_COLUMNS
    adapter = AdapterRow(id=7, namespace="acme", name="support", created_at=NOW, created_by="alice", updated_at=NOW)
    base = BaseRow(id=9, name="tiny-llama", fingerprint="", spec={}, created_at=NOW, created_by="alice")
    files = [
        Descriptor(path=path, media_type=media_type(path), digest=Digest.of(data), size_bytes=len(data))
        for path, data in samples.lora(samples.llama()).items()
    ]
    manifest = Manifest.build(BaseRef(name="tiny-llama", fingerprint=spec_of(samples.llama()).fingerprint), files, ())
    row = version_rows.version_row(adapter, base, manifest, **RECORDED)
    record = VersionRecord.parse(metadata_backup.version_record(adapter, row).to_bytes())
    restored = version_rows.version_row(adapter, base, record.manifest, **metadata_backup.recorded_columns(record))
    assert restored.model_dump() == row.model_dump()
    assert (record.namespace, record.name) == ("acme", "support")
