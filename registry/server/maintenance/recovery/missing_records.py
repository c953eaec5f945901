"""Find and rewrite records of versions, bases and tombstones that the bucket has lost.

The bucket is then older than the database: a re-index from it would not find them, or would restore a version as it was
before it was withdrawn.

- A record counts if it has what the row has: the withdrawals of a version, the identity of a base.
- A lost record is written again like the first one: `recorded_at` is cleared, then the backup runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import Engine, update
from sqlmodel import Session, SQLModel, col, select

from registry.names import AdapterName
from registry.server.catalog import metadata_backup, versions
from registry.server.catalog.records import BaseRecord, VersionRecord
from registry.server.database import db
from registry.server.database.models import AdapterRow, BaseIdentityRow, BaseRow, TakenNameRow, VersionRow
from registry.server.storage.blobs import BlobStore, Stat

BATCH = 200
Recorded = tuple[AdapterRow, VersionRow]


def select_recorded(session: Session, name: AdapterName) -> Sequence[Recorded]:
    """Select the versions of an adapter that should have a record. Call this before listing the store."""
    joined = select(AdapterRow, VersionRow).join(VersionRow, col(VersionRow.adapter_id) == col(AdapterRow.id))
    recorded = joined.where(versions.named(name), col(VersionRow.recorded_at).is_not(None))
    return session.exec(recorded.order_by(col(VersionRow.number))).all()


def find_versions(
    engine: Engine, blobs: BlobStore, name: AdapterName, rows: Iterable[Recorded], listed: Iterable[Stat]
) -> list[int]:
    """Return the numbers of those versions whose record is not in the listing, after a second look."""
    missing = list(_find_versions(blobs, name, rows, listed))
    if not missing:
        return []
    with db.session(engine, write=False) as session:  # an adapter that was renamed meanwhile has none under this name
        current = [row for row in select_recorded(session, name) if row[1].number in missing]
    listing = list(blobs.list(metadata_backup.adapter_prefix(name.namespace, name.name)))
    return list(_find_versions(blobs, name, current, listing))


def _find_versions(
    blobs: BlobStore, name: AdapterName, rows: Iterable[Recorded], listed: Iterable[Stat]
) -> Iterator[int]:
    by_number: dict[int, list[Stat]] = defaultdict(list)
    for stat in listed:
        by_number[int(stat.key.split("/")[4])].append(stat)
    for adapter, version in rows:
        stats = by_number[version.number]
        try:
            digest = metadata_backup.version_record(adapter, version).digest.hex
        except ValueError:  # an unreadable manifest is a finding of another check
            continue
        if any(stat.key.endswith(digest) for stat in stats):
            continue
        keys = [(stat.key, stat.size_bytes) for stat in stats]
        record = metadata_backup.newest_record(blobs, keys, name, version.number, [])
        if record is None or record.manifest.digest != version.digest or _is_older(record, version):
            yield version.number


def _is_older(record: VersionRecord, version: VersionRow) -> bool:
    return metadata_backup.revision(record) < metadata_backup.revision(version)


def find_other_rows(engine: Engine, blobs: BlobStore) -> list[tuple[str, SQLModel]]:
    """Return the bases and tombstones whose record is lost, each with its location in a finding."""
    with db.session(engine, write=False) as session:
        ended = select(TakenNameRow).where(col(TakenNameRow.recorded_at).is_not(None))
        tombstones = session.exec(ended.order_by(col(TakenNameRow.owner), col(TakenNameRow.name))).all()
        joined = select(BaseRow, BaseIdentityRow.identity).outerjoin(
            BaseIdentityRow, col(BaseIdentityRow.base_id) == col(BaseRow.id)
        )
        bases = session.exec(joined.where(col(BaseRow.recorded_at).is_not(None)).order_by(col(BaseRow.name))).all()
    folders = {stat.key.rpartition("/")[0] for stat in blobs.list(metadata_backup.TOMBSTONES)}
    missing: list[tuple[str, SQLModel]] = []
    for row in tombstones:
        if row.ended_at is not None and metadata_backup.tombstone_prefix(row) not in folders:
            missing.append((metadata_backup.tombstone_prefix(row), row))
    listed = list(blobs.list(metadata_backup.BASES))
    for base, identity in bases:
        digest = metadata_backup.base_record(base, identity).digest.hex
        if not any(stat.key.endswith(digest) for stat in listed) and not _has_record(blobs, listed, base, identity):
            missing.append((f"base {base.name}", base))
    return missing


def _has_record(blobs: BlobStore, listed: Iterable[Stat], base: BaseRow, identity: str | None) -> bool:
    records = (metadata_backup.parse_record(blobs, stat.key, stat.size_bytes, BaseRecord, []) for stat in listed)
    return any(
        record.spec.name == base.name
        and record.spec.fingerprint == base.fingerprint
        and (identity is None or record.identity is not None)
        for record in records
        if record is not None
    )


def rewrite_missing(engine: Engine, blobs: BlobStore, *, dry_run: bool) -> int:
    """Write the lost records again; return how many there are."""
    count = 0
    for _, row in find_other_rows(engine, blobs):
        count += 1
        if not dry_run:
            with db.session(engine) as session:
                session.add(row.sqlmodel_update({"recorded_at": None}))
    listed: dict[tuple[str, str], list[Stat]] = defaultdict(list)
    for name, rows in _select_adapters(engine):
        if not listed:
            for stat in blobs.list(metadata_backup.VERSIONS):
                namespace, adapter = stat.key.split("/")[2:4]
                listed[(namespace, adapter)].append(stat)
        numbers = find_versions(engine, blobs, name, rows, listed[(name.namespace, name.name)])
        count += len(numbers)
        ids = [version.id for _, version in rows if version.number in numbers]
        if ids and not dry_run:
            with db.session(engine) as session:
                statement = update(VersionRow).where(col(VersionRow.id).in_(ids))
                session.connection().execute(statement.values(recorded_at=None))
    while count and not dry_run and metadata_backup.write_missing(engine, blobs, limit=BATCH):
        pass
    return count


def _select_adapters(engine: Engine) -> Iterator[tuple[AdapterName, Sequence[Recorded]]]:
    after = 0
    while True:
        with db.session(engine, write=False) as session:
            statement = select(AdapterRow).where(col(AdapterRow.id) > after).order_by(col(AdapterRow.id)).limit(1)
            row = session.exec(statement).first()
            if row is None:
                return
            name = AdapterName(row.namespace, row.name)
            rows = select_recorded(session, name)
        yield name, rows
        after = row.id or 0
