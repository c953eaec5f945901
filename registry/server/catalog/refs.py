"""Refs: what the bucket says about its versions, so that `reindex` imports them without a database.

    refs/<ns>/<name>/<number>/<hex>   which manifest the version has, who pushed it and when, whether it is withdrawn
    bases/<hex>                       a base: its spec, its other names, which weights it has, who added it and when

- The manifest itself is a blob under its digest, and the files that it names are blobs: a ref is all that is missing.
- A ref is written after the commit of its row, so there is none of a version that does not exist. `recorded_at` is
  empty until then; the next push or `gc` writes what is missing.
- A withdrawal or the end of one, and a base's identity, are written again, and the object of before is deleted. A ref
  that was written while its adapter was renamed is deleted and written again under the new name.
- Aliases, verdicts, tokens, reserved names and the audit log are in the database's own backup (`maintenance.backup`).
"""

import contextlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import BindParameter, Engine, Integer, bindparam, update
from sqlmodel import Session, col, select

from registry.bases import BaseSpec
from registry.bases.identity import Identity
from registry.digest import Digest
from registry.errors import Invalid, RegistryError, Unavailable
from registry.names import AdapterName
from registry.server.catalog import base_rows
from registry.server.database import db
from registry.server.database.models import AdapterRow, BaseIdentityRow, BaseRow, VersionRow
from registry.server.storage.blobs import BlobStore, Stat, write_blob
from registry.validation import first_problem
from registry.versions.manifest import Edge

REFS, BASES = "refs/", "bases/"
LIMIT_BYTES = 64 * 2**20


class StoredObject(BaseModel):
    """An object of the bucket, named by the SHA-256 of its bytes."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    created_at: datetime
    created_by: str

    def to_bytes(self) -> bytes:
        """The canonical JSON of the object."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False).encode()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """`Invalid` (MANIFEST_INVALID) for bytes that are no object of this kind."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as e:
            raise Invalid("MANIFEST_INVALID", "{}: {}".format(*first_problem(e, "document"))) from e


class StoredBase(StoredObject):
    """A base, and which weights it has once that is known."""

    spec: BaseSpec
    source: str
    identity: Identity | None = None
    parents: tuple[Edge, ...] = ()
    aliases: tuple[str, ...] = ()


class StoredRef(StoredObject):
    """A version: `acme/support@3` and the digest of its manifest. A withdrawal is its reason; None: not withdrawn."""

    version: str
    manifest: Digest
    message: str
    yanked: str | None = None
    quarantined: str | None = None
    deleted: str | None = None
    is_purged: bool = False


Shape = TypeVar("Shape", bound=StoredObject)


def base_object(row: BaseRow, identity: str | None) -> StoredBase:
    """What the bucket says about a base."""
    return StoredBase(
        created_at=row.created_at, created_by=row.created_by,
        spec=BaseSpec.model_validate(row.spec), source=row.source,
        parents=tuple(Edge.model_validate(edge) for edge in row.parents or ()),
        identity=Identity.model_validate_json(identity) if identity else None, aliases=tuple(row.aliases or ()),
    )  # fmt: skip


def ref_of(adapter: AdapterRow, row: VersionRow) -> StoredRef:
    """What the bucket says about a version."""
    return StoredRef(
        created_at=row.created_at, created_by=row.created_by,
        version=f"{adapter.namespace}/{adapter.name}@{row.number}", manifest=Digest(row.digest), message=row.message,
        yanked=row.yank_reason if row.yanked_at is not None else None,
        quarantined=row.quarantine_reason if row.quarantined_at is not None else None,
        deleted=row.delete_reason if row.deleted_at is not None else None, is_purged=row.purged_at is not None,
    )  # fmt: skip


def adapter_prefix(name: AdapterName) -> str:
    """The folder of all refs of an adapter."""
    return f"{REFS}{name.namespace}/{name.name}/"


def version_in_key(key: str) -> tuple[AdapterName, int]:
    """The version of which a key is the ref."""
    _, namespace, name, number, _ = key.split("/")
    return AdapterName(namespace, name), int(number)


def read(blobs: BlobStore, stat: Stat, shape: type[Shape]) -> Shape | None:
    """The object under a key; None if it is gone, or does not hash to its key, or is no such object."""
    with contextlib.suppress(RegistryError):
        data = blobs.read(stat.key, 0, min(stat.size_bytes, LIMIT_BYTES))
        if Digest.of(data).hex == stat.key[-64:]:
            return shape.parse(data)
    return None


def read_ref(blobs: BlobStore, stat: Stat) -> StoredRef | None:
    """The ref under a key; None as of `read`, and for the ref of another version than the key's."""
    ref = read(blobs, stat, StoredRef)
    name, number = version_in_key(stat.key)
    return ref if ref is not None and ref.version == f"{name}@{number}" else None


def delete_base(blobs: BlobStore, name: str) -> None:
    """Delete what the bucket says about a base that was deleted: `reindex` would add it again."""
    with contextlib.suppress(Unavailable):
        for stat in list(blobs.list(BASES)):
            base = read(blobs, stat, StoredBase)
            if base is not None and base.spec.name == name:
                blobs.delete(stat.key)


def delete_adapter(blobs: BlobStore, name: AdapterName) -> None:
    """Delete the refs of an adapter that was deleted or renamed: `reindex` would import it again."""
    with contextlib.suppress(Unavailable):
        _delete_others(blobs, adapter_prefix(name))


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


def write_missing(engine: Engine, blobs: BlobStore, *, limit: int) -> int:
    """Write up to `limit` missing refs, and as many bases; returns how many. Safe to run concurrently."""
    with db.session(engine, write=False) as session:
        params = {"limit": limit}
        bases, versions = session.exec(_BASES, params=params).all(), session.exec(_VERSIONS, params=params).all()
    for base, identity in bases:
        _put(blobs, BASES, base_object(base, identity))
    keys = [_put_ref(blobs, adapter, version) for adapter, version in versions]
    if bases or versions:
        with db.session(engine) as session:
            _mark_bases(session, bases)
            stale = _mark_versions(session, versions)
        for key in (key for key, (_, version) in zip(keys, versions, strict=True) if version.id in stale):
            blobs.delete(key)
    return len(bases) + len(versions)


def _put_ref(blobs: BlobStore, adapter: AdapterRow, version: VersionRow) -> str:
    folder = f"{adapter_prefix(AdapterName(adapter.namespace, adapter.name))}{version.number}/"
    key = _put(blobs, folder, ref_of(adapter, version))
    if version.yanked_at is not None or version.quarantine:  # else this is the first one
        _delete_others(blobs, folder, key)
    return key


def _put(blobs: BlobStore, folder: str, stored: StoredObject) -> str:
    data = stored.to_bytes()
    key = folder + Digest.of(data).hex
    write_blob(blobs, key, [data], limit_bytes=len(data))  # it hardly ever exists, so looking first would waste a call
    return key


def _delete_others(blobs: BlobStore, folder: str, except_key: str = "") -> None:
    for key in [stat.key for stat in blobs.list(folder) if stat.key != except_key]:
        blobs.delete(key)


def _mark_bases(session: Session, bases: Sequence[tuple[BaseRow, str | None]]) -> None:
    """Mark bases as recorded, except those whose identity changed since: they are written again.

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
    """Mark versions as recorded; returns the ids whose adapter was renamed or deleted since: their refs are stale.

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
