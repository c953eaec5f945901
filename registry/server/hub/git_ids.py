"""Git ids of small files: computed when they are first requested and stored with the version's file.

- Bytes that do not hash to their SHA-256 raise `Corrupt`; they get no git id.
- The ids are stored per version, although they depend on the bytes only. Otherwise the first answer would be faster if
  another tenant's version of the same bytes was requested before.
- Blobs are read outside of any transaction.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import ColumnElement, Engine, update
from sqlmodel import col, select

from registry import hub
from registry.digest import Digest
from registry.errors import Corrupt
from registry.hub.shapes import File
from registry.manifest import Descriptor
from registry.server.catalog import files
from registry.server.database import db
from registry.server.database.models import VersionFileRow
from registry.server.storage.blobs import BlobStore


def with_git_ids(
    engine: Engine, blobs: BlobStore, version_id: int | None, descriptors: Iterable[Descriptor]
) -> list[File]:
    """Return the files of a version with their git ids, in the same order. One statement if all ids are stored."""
    descriptors = list(descriptors)
    small = {file.digest: file for file in descriptors if not hub.is_large(file)}
    of_version = col(VersionFileRow.version_id) == version_id
    ids = _read_stored(engine, of_version, small)
    computed = {digest: _compute(blobs, file) for digest, file in small.items() if digest not in ids}
    if computed:
        with db.session(engine) as session:
            for digest, git_id in computed.items():
                statement = update(VersionFileRow).where(of_version, col(VersionFileRow.digest) == digest)
                session.execute(statement.values(git_sha1=git_id))
    ids |= computed
    return [File(file, ids.get(file.digest) or hub.git_id(hub.pointer(file))) for file in descriptors]


def _read_stored(engine: Engine, of_version: ColumnElement[bool], digests: Iterable[Digest]) -> dict[Digest, str]:
    digests = sorted(digests)
    if not digests:
        return {}
    statement = select(VersionFileRow.digest, VersionFileRow.git_sha1)
    statement = statement.where(of_version, col(VersionFileRow.digest).in_(digests))
    with db.session(engine, write=False) as session:
        return {Digest(digest): git_id for digest, git_id in session.exec(statement) if git_id}


def _compute(blobs: BlobStore, file: Descriptor) -> str:
    data = blobs.read(files.locate_bytes(blobs, file), 0, file.size_bytes)
    if Digest.of(data) != file.digest:
        raise Corrupt("DIGEST_MISMATCH", f"{file.path}: the stored bytes no longer hash to {file.digest}")
    return hub.git_id(data)
