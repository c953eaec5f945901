"""Unrecorded: versions, bases and tombstones that were recorded beside the blobs, and whose records are lost there.

Then the bucket is older than the database: a re-index of the bucket alone would not find them, or would find a version
as it was before it was withdrawn.

Invariants
- A record counts if it tells as much as the row: the withdrawals of a version, the weights of a base.
- What is lost is written again from the row, by the way of a first record: `recorded_at` is emptied, then filled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import Engine, update
from sqlmodel import Session, SQLModel, col, select

from registry.api.records import BaseRecord
from registry.names import AdapterName
from registry.server.catalog import metadata_backup, versions
from registry.server.database import db
from registry.server.database.models import AdapterRow, BaseIdentityRow, BaseRow, TakenNameRow, VersionRow
from registry.server.storage.blobs import BlobStore, Stat

BATCH = 200
Recorded = tuple[AdapterRow, VersionRow]


def recorded(session: Session, name: AdapterName) -> Sequence[Recorded]:
    """The versions of an adapter that should have a record. Ask before the store is listed."""
    joined = select(AdapterRow, VersionRow).join(VersionRow, col(VersionRow.adapter_id) == col(AdapterRow.id))
    mine = joined.where(versions.named(name), col(VersionRow.recorded_at).is_not(None))
    return session.exec(mine.order_by(col(VersionRow.number))).all()


def lost(
    engine: Engine, blobs: BlobStore, name: AdapterName, rows: Iterable[Recorded], listed: Iterable[Stat]
) -> list[int]:
    """The numbers of those whose record is not among what was listed of this adapter, looked for once more."""
    found = list(_untold(blobs, name, rows, listed))
    if not found:
        return []
    with db.session(engine, write=False) as session:  # an adapter that got another name meanwhile has none under this
        still = [(adapter, version) for adapter, version in recorded(session, name) if version.number in found]
    return list(
        _untold(blobs, name, still, list(blobs.list(metadata_backup.adapter_prefix(name.namespace, name.name))))
    )


def _untold(blobs: BlobStore, name: AdapterName, rows: Iterable[Recorded], listed: Iterable[Stat]) -> Iterator[int]:
    by_number: dict[int, list[Stat]] = defaultdict(list)
    for stat in listed:
        by_number[int(stat.key.split("/")[4])].append(stat)
    for adapter, version in rows:
        kept = by_number[version.number]
        try:
            own = metadata_backup.version_record(adapter, version).digest.hex
        except ValueError:  # a manifest that cannot be read: a check tells of it
            continue
        if any(stat.key.endswith(own) for stat in kept):
            continue
        record = metadata_backup.newest_record(
            blobs, [(stat.key, stat.size_bytes) for stat in kept], name, version.number, []
        )
        if (
            record is None
            or record.manifest.digest != version.digest
            or metadata_backup.withdrawal_count(record) < metadata_backup.withdrawal_count(version)
        ):
            yield version.number


def others(engine: Engine, blobs: BlobStore) -> list[tuple[str, SQLModel]]:
    """Bases and tombstones whose record is lost, with what they are called."""
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
        own = metadata_backup.base_record(base, identity).digest.hex
        if not any(stat.key.endswith(own) for stat in listed) and not _base_told(blobs, listed, base, identity):
            missing.append((f"base {base.name}", base))
    return missing


def _base_told(blobs: BlobStore, listed: Iterable[Stat], base: BaseRow, identity: str | None) -> bool:
    found = (metadata_backup.parse_record(blobs, stat.key, stat.size_bytes, BaseRecord, []) for stat in listed)
    return any(
        record.spec.name == base.name
        and record.spec.fingerprint == base.fingerprint
        and (identity is None or record.identity is not None)
        for record in found
        if record is not None
    )


# ------------------------------------------------------------------ written again
def again(engine: Engine, blobs: BlobStore, *, dry_run: bool) -> int:
    """Write the records that are lost; how many."""
    count = 0
    for _, row in others(engine, blobs):
        count += 1
        if not dry_run:
            with db.session(engine) as session:
                session.add(row.sqlmodel_update({"recorded_at": None}))
    listed: dict[tuple[str, str], list[Stat]] = defaultdict(list)
    for name, rows in _adapters(engine):
        if not listed:
            for stat in blobs.list(metadata_backup.VERSIONS):
                namespace, word = stat.key.split("/")[2:4]
                listed[(namespace, word)].append(stat)
        numbers = lost(engine, blobs, name, rows, listed[(name.namespace, name.name)])
        count += len(numbers)
        ids = [version.id for _, version in rows if version.number in numbers]
        if ids and not dry_run:
            with db.session(engine) as session:
                mine = update(VersionRow).where(col(VersionRow.id).in_(ids))
                session.connection().execute(mine.values(recorded_at=None))
    while count and not dry_run and metadata_backup.write_missing(engine, blobs, limit=BATCH):
        pass
    return count


def _adapters(engine: Engine) -> Iterator[tuple[AdapterName, Sequence[Recorded]]]:
    after = 0
    while True:
        with db.session(engine, write=False) as session:
            statement = select(AdapterRow).where(col(AdapterRow.id) > after).order_by(col(AdapterRow.id)).limit(1)
            row = session.exec(statement).first()
            if row is None:
                return
            name = AdapterName(row.namespace, row.name)
            rows = recorded(session, name)
        yield name, rows
        after = row.id or 0
