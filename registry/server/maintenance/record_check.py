"""Compare the records in the bucket with the rows: find what either has lost, and rewrite lost records.

- A record counts if it has what the row has: the withdrawals of a version, the identity of a base.
- A lost record is written again like the first one: `recorded_at` is cleared, then the backup runs.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeGuard

from sqlalchemy import Engine, update
from sqlmodel import Session, SQLModel, col, select

from registry.names import AdapterName
from registry.server.catalog import metadata_backup, versions
from registry.server.catalog.metadata_backup import BaseRecord, VersionRecord, revision
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import AdapterRow, BaseIdentityRow, BaseRow, VersionRow
from registry.server.database.models.namespaces import TakenNameRow
from registry.server.storage.blobs import BlobStore, Stat

BATCH = 200
Recorded = tuple[AdapterRow, VersionRow]
Key = tuple[str, int]
"""A key of the store and its size in bytes."""
_SELECT_VERSIONS = select(AdapterRow, VersionRow).join(VersionRow, col(VersionRow.adapter_id) == col(AdapterRow.id))


def select_recorded(session: Session, name: AdapterName) -> Sequence[Recorded]:
    """Select the versions of an adapter that should have a record. Call this before listing the store."""
    recorded = _SELECT_VERSIONS.where(versions.has_name(name), col(VersionRow.recorded_at).is_not(None))
    return session.exec(recorded.order_by(col(VersionRow.number))).all()


def find_versions(
    engine: Engine, blobs: BlobStore, name: AdapterName, rows: Iterable[Recorded], stats: Iterable[Stat]
) -> list[int]:
    """Return the numbers of those versions whose record is not in the listing, after a second look."""
    missing = list(_find_versions(blobs, name, rows, stats))
    if not missing:
        return []
    with db.session(engine, write=False) as session:  # an adapter that was renamed meanwhile has none under this name
        current = [row for row in select_recorded(session, name) if row[1].number in missing]
    listing = list(blobs.list(metadata_backup.adapter_prefix(name.namespace, name.name)))
    return list(_find_versions(blobs, name, current, listing))


def _find_versions(
    blobs: BlobStore, name: AdapterName, rows: Iterable[Recorded], stats: Iterable[Stat]
) -> Iterator[int]:
    for version, is_listed, others in _match(rows, stats):
        if not is_listed:
            record = metadata_backup.newest_record(blobs, others, name, version.number, [])
            if not _is_of(record, version) or revision(record) < revision(version):
                yield version.number


def find_unknown_withdrawals(
    engine: Engine, blobs: BlobStore, name: AdapterName, stats: Iterable[Stat]
) -> Iterator[VersionRecord]:
    """Yield the records, listed before, of withdrawals or their ends that the rows of this adapter do not know."""
    with db.session(engine, write=False) as session:
        rows = session.exec(_SELECT_VERSIONS.where(versions.has_name(name))).all()
    for version, _, others in _match(rows, stats):
        record = metadata_backup.newest_record(blobs, others, name, version.number, [])
        if _is_of(record, version) and revision(record) > revision(version):
            yield record


def _match(rows: Iterable[Recorded], stats: Iterable[Stat]) -> Iterator[tuple[VersionRow, bool, list[Key]]]:
    """Yield each version, whether its own record is listed, and the keys and sizes of its other records."""
    by_number: dict[int, list[Key]] = defaultdict(list)
    for stat in stats:
        by_number[int(stat.key.split("/")[4])].append((stat.key, stat.size_bytes))
    for adapter, version in rows:
        try:
            digest = metadata_backup.version_record(adapter, version).digest.hex
        except ValueError:  # an unreadable manifest is a finding of another check
            continue
        keys = by_number[version.number]
        others = [key for key in keys if not key[0].endswith(digest)]
        yield version, len(others) < len(keys), others


def _is_of(record: VersionRecord | None, version: VersionRow) -> TypeGuard[VersionRecord]:
    return record is not None and record.manifest.digest == version.digest


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
    stats = list(blobs.list(metadata_backup.BASES))
    for base, identity in bases:
        digest = metadata_backup.base_record(base, identity).digest.hex
        if not any(stat.key.endswith(digest) for stat in stats) and not _has_record(blobs, stats, base, identity):
            missing.append((f"base {base.name}", base))
    return missing


def _has_record(blobs: BlobStore, stats: Iterable[Stat], base: BaseRow, identity: str | None) -> bool:
    records = (metadata_backup.parse_record(blobs, stat.key, stat.size_bytes, BaseRecord, []) for stat in stats)
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
    stats: dict[tuple[str, str], list[Stat]] = defaultdict(list)
    for name, rows in _select_adapters(engine):
        if not stats:
            for stat in blobs.list(metadata_backup.VERSIONS):
                namespace, adapter = stat.key.split("/")[2:4]
                stats[(namespace, adapter)].append(stat)
        numbers = find_versions(engine, blobs, name, rows, stats[(name.namespace, name.name)])
        count += len(numbers)
        ids = [version.id for _, version in rows if version.number in numbers]
        if ids and not dry_run:
            with db.session(engine) as session:
                statement = update(VersionRow).where(any_of(col(VersionRow.id), ids))
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
