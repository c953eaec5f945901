"""Metadata backup: versions, bases and tombstones as small records beside the blobs, so that the bucket alone suffices.

    records/base/<hex>                          name, fingerprint, spec, source, who, when, which weights
    records/version/<ns>/<name>/<number>/<hex>  name, number, manifest, message, who, when, withdrawn or deleted and why
    records/tombstone/<ns>/<name>/<hex>         an adapter's name that is never used again, and since when
    records/tombstone/<ns>/<hex>                the same for a namespace's name
    records/tombstone/@<org>/<name>/<hex>       the same for a name that a base had

- A record is written after the commit of its row, so there is no record of a version that does not exist.
  `recorded_at` is empty until then; the next push or `gc` writes what is missing.
- A withdrawal or the end of one, and a base's identity, are recorded again; the newest record counts. A record written
  while its adapter was renamed is deleted and written again under the new name.
- Aliases, verdicts, tokens and the audit log have no records: only the database's backup has them.
"""

import contextlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import BindParameter, Engine, Integer, bindparam, update
from sqlmodel import Session, col, select

from registry.bases import BaseSpec
from registry.bases.identity import Identity
from registry.digest import Digest
from registry.errors import Invalid, NotFound, RegistryError, Unavailable
from registry.findings import Finding
from registry.names import AdapterName
from registry.server.catalog import base_rows
from registry.server.database import db
from registry.server.database.models import AdapterRow, BaseIdentityRow, BaseRow, VersionRow
from registry.server.database.models.namespaces import TakenNameRow
from registry.server.storage.blobs import BlobStore, write_blob
from registry.validation import first_problem
from registry.versions.manifest import Edge, Manifest

VERSIONS, BASES, TOMBSTONES = "records/version/", "records/base/", "records/tombstone/"
RECORD_LIMIT_BYTES = 64 * 2**20


class Record(BaseModel):
    """The base of all records: facts that never change, named by the SHA-256 of their bytes."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    schema_version: Literal[1] = 1
    created_at: datetime
    created_by: str

    def to_bytes(self) -> bytes:
        """The canonical JSON of the record."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False).encode()

    @property
    def digest(self) -> Digest:
        """The SHA-256 of its bytes, with which its key ends."""
        return Digest.of(self.to_bytes())

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """`Invalid` (MANIFEST_INVALID) for bytes that are no record of this kind."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as e:
            raise Invalid("MANIFEST_INVALID", "record: {}: {}".format(*first_problem(e, "document"))) from e


class BaseRecord(Record):
    """A base, and which weights it has once that is known."""

    spec: BaseSpec
    source: str
    identity: Identity | None = None
    parents: tuple[Edge, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def edges(self) -> list[dict[str, Any]] | None:
        """The value of the row's column `parents`: what was fused into the base, or None."""
        return [edge.model_dump(mode="json") for edge in self.parents] or None


class VersionRecord(Record):
    """A version: its name and manifest, what the push said, what its bytes say, and whether it is withdrawn."""

    namespace: str
    name: str
    number: int
    manifest: Manifest
    method: str
    rank: int | None
    facts: dict[str, Any]
    message: str
    yanked_at: datetime | None
    yank_reason: str
    quarantine: int = 0
    quarantined_at: datetime | None = None
    quarantine_reason: str = ""
    deleted_at: datetime | None = None
    deleted_by: str = ""
    delete_reason: str = ""
    purged_at: datetime | None = None


class TombstoneRecord(Record):
    """A name that is never used again; for `owner`, see `TakenNameRow`."""

    owner: str
    name: str


RECORDED_COLUMNS = frozenset(VersionRecord.model_fields) - {"schema_version", "namespace", "name", "manifest"}
"""The columns of `version` that a record stores, each in the field of its name."""
DERIVED_COLUMNS = frozenset({"id", "adapter_id", "base_id", "digest", "manifest", "size_bytes"})
"""Columns that follow from the manifest and from the rows of adapter and base."""
LOCAL_COLUMNS = frozenset({"recorded_at", "measured_at"})
"""Columns that say what this server has done with a version. Reindex sets them again."""
Shape = TypeVar("Shape", bound=Record)


def base_record(row: BaseRow, identity: str | None) -> BaseRecord:
    """Return what a base's record stores."""
    return BaseRecord(
        created_at=row.created_at, created_by=row.created_by,
        spec=BaseSpec.model_validate(row.spec), source=row.source,
        parents=tuple(Edge.model_validate(edge) for edge in row.parents or ()),
        identity=Identity.model_validate_json(identity) if identity else None, aliases=tuple(row.aliases or ()),
    )  # fmt: skip


def version_record(adapter: AdapterRow, row: VersionRow) -> VersionRecord:
    """Return what a version's record stores."""
    columns = {name: getattr(row, name) for name in RECORDED_COLUMNS}
    manifest = Manifest.model_validate_json(row.manifest)
    return VersionRecord(namespace=adapter.namespace, name=adapter.name, manifest=manifest, **columns)


def tombstone_record(row: TakenNameRow) -> TombstoneRecord:
    """Return what a tombstone's record stores."""
    return TombstoneRecord(created_at=row.ended_at or db.now(), created_by="", owner=row.owner, name=row.name)


def recorded_columns(record: VersionRecord) -> dict[str, Any]:
    """Return the columns of a version's row that its record stores."""
    return {name: getattr(record, name) for name in RECORDED_COLUMNS}


def adapter_prefix(namespace: str, name: str) -> str:
    """The prefix of all records of one adapter's versions."""
    return f"{VERSIONS}{namespace}/{name}/"


def delete_base_records(blobs: BlobStore, name: str) -> None:
    """Delete the records of a base that was deleted. `reindex` would restore it from one that an outage left."""
    with contextlib.suppress(Unavailable):
        for stat in list(blobs.list(BASES)):
            record = parse_record(blobs, stat.key, stat.size_bytes, BaseRecord, [])
            if record is not None and record.spec.name == name:
                blobs.delete(stat.key)


def tombstone_prefix(tombstone: TakenNameRow) -> str:
    """The folder of a tombstone's record, without the slash."""
    return TOMBSTONES + "/".join(word for word in (tombstone.owner, tombstone.name) if word)


def read_record(blobs: BlobStore, key: str, size_bytes: int) -> bytes | None:
    """The bytes of a record; None if they do not hash to its key or were deleted since the listing."""
    try:
        data = blobs.read(key, 0, min(size_bytes, RECORD_LIMIT_BYTES))
    except NotFound:
        return None
    return data if Digest.of(data).hex == key[-64:] else None


def parse_record(
    blobs: BlobStore, key: str, size_bytes: int, shape: type[Shape], findings: list[Finding]
) -> Shape | None:
    """The record under a key; None, and a finding, if it is damaged."""
    data = read_record(blobs, key, size_bytes)
    if data is not None:
        with contextlib.suppress(RegistryError):
            return shape.parse(data)
    findings.append(Finding.of("error", "record.damaged", key, "has changed since it was written"))
    return None


def newest_record(
    blobs: BlobStore, keys: Sequence[tuple[str, int]], name: AdapterName, number: int, findings: list[Finding]
) -> VersionRecord | None:
    """The newest record of a version among these keys and sizes: each withdrawal writes another one."""
    records = [parse_record(blobs, key, size_bytes, VersionRecord, findings) for key, size_bytes in keys]
    subject = (name.namespace, name.name, number)
    return max((r for r in records if r and (r.namespace, r.name, r.number) == subject), key=revision, default=None)


def revision(version: VersionRecord | VersionRow) -> tuple[int, bool]:
    """Grows with every withdrawal or deletion of a version and with the end of one; nothing else of it changes."""
    return version.quarantine, version.yanked_at is not None


# Built once: every push executes them, unless others are in progress.
_LIMIT: BindParameter[int] = bindparam("limit", type_=Integer)
_BASES = (
    select(BaseRow, BaseIdentityRow.identity)
    .outerjoin(BaseIdentityRow, col(BaseIdentityRow.base_id) == col(BaseRow.id))
    .where(col(BaseRow.recorded_at).is_(None), base_rows.REGISTERED)
    .limit(_LIMIT)
)
_VERSIONS = (
    select(AdapterRow, VersionRow)
    .join(VersionRow, col(VersionRow.adapter_id) == col(AdapterRow.id))
    .where(col(VersionRow.recorded_at).is_(None))
    .limit(_LIMIT)
)
_TOMBSTONES = (
    select(TakenNameRow)
    .where(col(TakenNameRow.ended_at).is_not(None), col(TakenNameRow.recorded_at).is_(None))
    .limit(_LIMIT)
)


def write_missing(engine: Engine, blobs: BlobStore, *, limit: int) -> int:
    """Write up to `limit` missing records of each kind; returns how many. Safe to run concurrently."""
    with db.session(engine, write=False) as session:
        params = {"limit": limit}
        bases, versions = session.exec(_BASES, params=params).all(), session.exec(_VERSIONS, params=params).all()
        tombstones = session.exec(_TOMBSTONES, params=params).all()
    for tombstone in tombstones:  # first: if this is interrupted, a lost tombstone is worse than the rest
        _put(blobs, f"{tombstone_prefix(tombstone)}/", tombstone_record(tombstone))
    for base, identity in bases:
        _put(blobs, BASES, base_record(base, identity))
    keys = [_put_version(blobs, adapter, version) for adapter, version in versions]
    if bases or versions or tombstones:
        with db.session(engine) as session:
            for row in tombstones:
                same = update(TakenNameRow).filter_by(owner=row.owner, skeleton=row.skeleton)
                session.connection().execute(same.values(recorded_at=db.now()))
            _mark_bases(session, bases)
            stale = _mark_versions(session, versions)
        for key in (key for key, (_, version) in zip(keys, versions, strict=True) if version.id in stale):
            blobs.delete(key)
    return len(bases) + len(versions) + len(tombstones)


def _put_version(blobs: BlobStore, adapter: AdapterRow, version: VersionRow) -> str:
    folder = f"{adapter_prefix(adapter.namespace, adapter.name)}{version.number}/"
    key = _put(blobs, folder, version_record(adapter, version))
    if version.yanked_at is not None and not version.quarantine:  # every later record will be newer
        for old in [stat.key for stat in blobs.list(folder) if stat.key != key]:
            blobs.delete(old)
    return key


def _put(blobs: BlobStore, folder: str, record: Record) -> str:
    key, data = folder + record.digest.hex, record.to_bytes()
    write_blob(blobs, key, [data], limit_bytes=len(data))  # it hardly ever exists, so looking first would waste a call
    return key


def _mark_bases(session: Session, bases: Sequence[tuple[BaseRow, str | None]]) -> None:
    """Mark bases as recorded, except those whose identity changed since: they are recorded again.

    Identities are read after the update has locked the rows, because storing one locks the base's row, too.
    """
    if not bases:
        return
    ids = [base.id for base, _ in bases]
    session.connection().execute(update(BaseRow).where(col(BaseRow.id).in_(ids)).values(recorded_at=db.now()))
    statement = select(BaseIdentityRow.base_id, BaseIdentityRow.identity).where(col(BaseIdentityRow.base_id).in_(ids))
    current = dict(session.exec(statement).all())
    if stale := [base.id for base, identity in bases if current.get(base.id or 0) != identity]:
        session.connection().execute(update(BaseRow).where(col(BaseRow.id).in_(stale)).values(recorded_at=None))


def _mark_versions(session: Session, versions: Sequence[tuple[AdapterRow, VersionRow]]) -> set[int | None]:
    """Mark versions as recorded; returns the ids whose adapter was renamed or deleted since: their records are stale.

    A version that was withdrawn since keeps its empty `recorded_at`. Names are read after the update has locked the
    rows: a rename in progress empties `recorded_at` after this transaction.
    """
    by_revision: dict[tuple[datetime | None, int], list[int | None]] = {}
    for _, row in versions:
        by_revision.setdefault((row.yanked_at, row.quarantine), []).append(row.id)
    for (yanked_at, quarantine), ids in by_revision.items():
        yanked = col(VersionRow.yanked_at).is_(None) if yanked_at is None else col(VersionRow.yanked_at) == yanked_at
        unchanged = (col(VersionRow.id).in_(ids), yanked, col(VersionRow.quarantine) == quarantine)
        session.connection().execute(update(VersionRow).where(*unchanged).values(recorded_at=db.now()))
    current: dict[int | None, tuple[str, str]] = {}
    if versions:
        statement = select(AdapterRow.id, AdapterRow.namespace, AdapterRow.name)
        rows = session.exec(statement.where(col(AdapterRow.id).in_({adapter.id for adapter, _ in versions}))).all()
        current = {adapter_id: (namespace, name) for adapter_id, namespace, name in rows}
    stale = {row.id for adapter, row in versions if current.get(adapter.id) != (adapter.namespace, adapter.name)}
    if stale:
        session.connection().execute(update(VersionRow).where(col(VersionRow.id).in_(stale)).values(recorded_at=None))
    return stale
