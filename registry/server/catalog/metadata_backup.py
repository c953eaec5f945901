"""Records: what versions, bases and tombstones are, as small files beside the blobs: the bucket alone is enough.

    records/base/<hex>                          name, fingerprint, spec, source, who, when, which weights
    records/version/<ns>/<name>/<number>/<hex>  name, number, manifest, message, who, when, withdrawn when and why
    records/tombstone/<ns>/<name>/<hex>         an adapter's name that is never given again, and since when
    records/tombstone/<ns>/<hex>                the same for a namespace's name

Invariants
- A record's key ends in the SHA-256 of its bytes, like every key of the store.
- A record is written after the commit of its row: `recorded_at` is empty until it is there, and whoever comes next
  (the next push, `gc`) writes what was left. So there is no record of a version that does not exist.
- A version whose adapter got another name while its record was written has none: it is written anew under that name.
- A version that is yanked, put in quarantine or released is recorded again, and so is a base
  whose weights become known; the fuller record counts.
- Aliases, verdicts, tokens and the audit log have no records: those come from the database's backup only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import BindParameter, Engine, Integer, bindparam, update
from sqlmodel import Session, col, select

from registry.api.records import BaseRecord, Record, TombstoneRecord, VersionRecord
from registry.bases import BaseSpec
from registry.bases.identity import Identity
from registry.digest import Digest
from registry.errors import NotFound, RegistryError
from registry.evaluation.verdicts import Finding
from registry.manifest import Edge, Manifest
from registry.names import AdapterName
from registry.server.database import db
from registry.server.database.models import AdapterRow, BaseIdentityRow, BaseRow, TakenNameRow, VersionRow
from registry.server.storage.blobs import BlobStore

VERSIONS, BASES, TOMBSTONES = "records/version/", "records/base/", "records/tombstone/"
RECORD_LIMIT_BYTES = 64 * 2**20
RECORDED_COLUMNS = frozenset(VersionRecord.model_fields) - {"schema_version", "namespace", "name", "manifest"}
"""The columns of `version` that a record stores, each in the field of its name."""
DERIVED_COLUMNS = frozenset({"id", "adapter_id", "base_id", "digest", "manifest", "size_bytes"})
"""Columns that follow from the manifest and from the rows of adapter and base."""
LOCAL_COLUMNS = frozenset({"recorded_at", "measured_at"})
"""Columns that say what this server has done with a version. They are set again after a re-index."""
Shape = TypeVar("Shape", bound=Record)


def base_record(row: BaseRow, identity: str | None) -> BaseRecord:
    """Return what a base's record stores."""
    return BaseRecord(
        created_at=row.created_at,
        created_by=row.created_by,
        spec=BaseSpec.model_validate(row.spec),
        source=row.source,
        parents=tuple(Edge.model_validate(edge) for edge in row.parents or ()),
        identity=Identity.model_validate_json(identity) if identity else None,
    )


def version_record(adapter: AdapterRow, row: VersionRow) -> VersionRecord:
    """Return what a version's record stores."""
    columns = {name: getattr(row, name) for name in RECORDED_COLUMNS}
    columns["pushed_by"] = row.pushed_by or ""
    manifest = Manifest.model_validate_json(row.manifest)
    return VersionRecord(namespace=adapter.namespace, name=adapter.name, manifest=manifest, **columns)


def tombstone_record(row: TakenNameRow) -> TombstoneRecord:
    """Return what a tombstone's record stores."""
    return TombstoneRecord(created_at=row.ended_at or db.now(), created_by="", owner=row.owner, name=row.name)


def recorded_columns(record: VersionRecord) -> dict[str, Any]:
    """Return the columns of a version's row that its record stores."""
    return {name: getattr(record, name) for name in RECORDED_COLUMNS} | {"pushed_by": record.pushed_by or None}


def adapter_prefix(namespace: str, name: str) -> str:
    """The prefix of all records of one adapter's versions."""
    return f"{VERSIONS}{namespace}/{name}/"


def tombstone_prefix(tombstone: TakenNameRow) -> str:
    """The folder of a tombstone's record."""
    return TOMBSTONES + "/".join(word for word in (tombstone.owner, tombstone.name) if word)


def read_record(blobs: BlobStore, key: str, size_bytes: int) -> bytes | None:
    """The bytes of a record, or None when they are not those that its key says, or went while it was listed."""
    try:
        data = blobs.read(key, 0, min(size_bytes, RECORD_LIMIT_BYTES))
    except NotFound:
        return None
    return data if Digest.of(data).hex == key[-64:] else None


def parse_record(
    blobs: BlobStore, key: str, size_bytes: int, shape: type[Shape], findings: list[Finding]
) -> Shape | None:
    """The record under a key; None, and a finding, for one that is damaged."""
    data = read_record(blobs, key, size_bytes)
    if data is not None:
        with contextlib.suppress(RegistryError):
            return shape.parse(data)
    findings.append(Finding.of("error", "record.damaged", key, "has changed since it was written"))
    return None


def newest_record(
    blobs: BlobStore, stored: Sequence[tuple[str, int]], name: AdapterName, number: int, findings: list[Finding]
) -> VersionRecord | None:
    """The record of a version among these keys and sizes. Each withdrawal records it anew: the last one counts."""
    records = [parse_record(blobs, key, size_bytes, VersionRecord, findings) for key, size_bytes in stored]
    location = (name.namespace, name.name, number)
    return max(
        (r for r in records if r and (r.namespace, r.name, r.number) == location), key=withdrawal_count, default=None
    )


def withdrawal_count(version: VersionRecord | VersionRow) -> tuple[int, bool]:
    """Grows with everything that changes in a version: withdrawals and their ends."""
    return version.quarantine, version.yanked_at is not None


_LIMIT: BindParameter[int] = bindparam("limit", type_=Integer)
_BASES = (
    select(BaseRow, BaseIdentityRow.identity)
    .outerjoin(BaseIdentityRow, col(BaseIdentityRow.base_id) == col(BaseRow.id))
    .where(col(BaseRow.recorded_at).is_(None))
    .limit(_LIMIT)
)
_VERSIONS = (
    select(AdapterRow, VersionRow)
    .join(VersionRow, col(VersionRow.adapter_id) == col(AdapterRow.id))
    .where(col(VersionRow.recorded_at).is_(None))
    .limit(_LIMIT)
)
_ENDED = (
    select(TakenNameRow)
    .where(col(TakenNameRow.ended_at).is_not(None), col(TakenNameRow.recorded_at).is_(None))
    .limit(_LIMIT)
)
"""What is still to be written. Put together once: every push that comes alone asks these."""


def write_missing(engine: Engine, blobs: BlobStore, *, limit: int) -> int:
    """Write up to `limit` records of each kind that are still to be written; how many. Any number may do so at once."""
    with db.session(engine, write=False) as session:
        most = {"limit": limit}
        bases, versions = session.exec(_BASES, params=most).all(), session.exec(_VERSIONS, params=most).all()
        tombstones = session.exec(_ENDED, params=most).all()
    for tombstone in tombstones:  # first: where this is broken off, a name that ended is worse to lose than the rest
        _put(blobs, f"{tombstone_prefix(tombstone)}/", tombstone_record(tombstone))
    for base, identity in bases:
        _put(blobs, BASES, base_record(base, identity))
    keys = [_put_version(blobs, adapter, version) for adapter, version in versions]
    if bases or versions or tombstones:
        with db.session(engine) as session:
            _note_ended(session, tombstones)
            _note_bases(session, bases)
            stale = _note_versions(session, versions)
        for key in (key for key, (_, version) in zip(keys, versions, strict=True) if version.id in stale):
            blobs.delete(key)
    return len(bases) + len(versions) + len(tombstones)


def _put_version(blobs: BlobStore, adapter: AdapterRow, version: VersionRow) -> str:
    folder = f"{adapter_prefix(adapter.namespace, adapter.name)}{version.number}/"
    key = _put(blobs, folder, version_record(adapter, version))
    if version.yanked_at is not None and not version.quarantine:  # no record to come counts less
        for old in [stat.key for stat in blobs.list(folder) if stat.key != key]:
            blobs.delete(old)
    return key


def _put(blobs: BlobStore, folder: str, record: Record) -> str:
    key, data = folder + record.digest.hex, record.to_bytes()
    blobs.put(key, [data], limit_bytes=len(data))  # it is hardly ever there: to look first would be a call for nothing
    return key


def _note_ended(session: Session, tombstones: Sequence[TakenNameRow]) -> None:
    for ended in tombstones:
        key = (col(TakenNameRow.owner) == ended.owner, col(TakenNameRow.skeleton) == ended.skeleton)
        session.connection().execute(update(TakenNameRow).where(*key).values(recorded_at=db.now()))


def _note_bases(session: Session, bases: Sequence[tuple[BaseRow, str | None]]) -> None:
    """The records are there. A base whose identity came or grew since then gets another; so identities are read when
    the rows are ours: whoever keeps one has its base's row locked.
    """
    if not bases:
        return
    mine = update(BaseRow).where(col(BaseRow.id).in_([base.id for base, _ in bases]))
    session.connection().execute(mine.values(recorded_at=db.now()))
    statement = select(BaseIdentityRow.base_id, BaseIdentityRow.identity)
    identities = dict(
        session.exec(statement.where(col(BaseIdentityRow.base_id).in_([base.id for base, _ in bases]))).all()
    )
    if stale := [base.id for base, identity in bases if identities.get(base.id or 0) != identity]:
        session.connection().execute(update(BaseRow).where(col(BaseRow.id).in_(stale)).values(recorded_at=None))


def _note_versions(session: Session, versions: Sequence[tuple[AdapterRow, VersionRow]]) -> set[int | None]:
    """The records are there. A version that was withdrawn since keeps its empty `recorded_at`; so do those, which are
    answered, whose adapter has another name by now or is gone.

    Names are looked at when the rows are ours: a transfer that is under way empties `recorded_at` after us.
    """
    alike: dict[tuple[datetime | None, int], list[int | None]] = {}
    for _, row in versions:
        alike.setdefault((row.yanked_at, row.quarantine), []).append(row.id)
    for (yanked_at, quarantine), ids in alike.items():
        yanked = col(VersionRow.yanked_at).is_(None) if yanked_at is None else col(VersionRow.yanked_at) == yanked_at
        same = update(VersionRow).where(col(VersionRow.id).in_(ids), yanked, col(VersionRow.quarantine) == quarantine)
        session.connection().execute(same.values(recorded_at=db.now()))
    called: dict[int | None, tuple[str, str]] = {}
    if versions:
        statement = select(AdapterRow.id, AdapterRow.namespace, AdapterRow.name)
        now = session.exec(statement.where(col(AdapterRow.id).in_({adapter.id for adapter, _ in versions}))).all()
        called = {adapter_id: (namespace, name) for adapter_id, namespace, name in now}
    stale = {row.id for adapter, row in versions if called.get(adapter.id) != (adapter.namespace, adapter.name)}
    if stale:
        session.connection().execute(update(VersionRow).where(col(VersionRow.id).in_(stale)).values(recorded_at=None))
    return stale
