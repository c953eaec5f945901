"""The git ids of small files: made when they are first asked for, kept with the version's file, the same for ever.

Invariants
- Bytes that no longer hash to their SHA-256 get no git id: they are `Corrupt`.
- They are kept for each version, though they follow from the bytes alone: else the first answer would be quicker where
  another tenant's version of the same bytes was asked before.
- Nothing is read or written while a transaction of the caller is open: on SQLite the two would wait for each other.
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


def known(engine: Engine, blobs: BlobStore, version_id: int | None, descriptors: Iterable[Descriptor]) -> list[File]:
    """The files of a version with their git ids, in the same order. One statement, once all were asked for before."""
    wanted = list(descriptors)
    small = {file.digest: file for file in wanted if not hub.is_large(file)}
    mine = col(VersionFileRow.version_id) == version_id
    ids = _stored(engine, mine, small)
    made = {digest: _made(blobs, file) for digest, file in small.items() if digest not in ids}
    if made:
        with db.session(engine) as session:
            for digest, git_id in made.items():
                which = (mine, col(VersionFileRow.digest) == digest)
                session.execute(update(VersionFileRow).where(*which).values(git_sha1=git_id))
    ids |= made
    return [File(file, ids.get(file.digest) or hub.git_id(hub.pointer(file))) for file in wanted]


def _stored(engine: Engine, mine: ColumnElement[bool], small: Iterable[Digest]) -> dict[Digest, str]:
    asked = sorted(small)
    if not asked:
        return {}
    statement = select(VersionFileRow.digest, VersionFileRow.git_sha1).where(
        mine, col(VersionFileRow.digest).in_(asked)
    )
    with db.session(engine, write=False) as session:
        return {Digest(digest): git_id for digest, git_id in session.exec(statement) if git_id}


def _made(blobs: BlobStore, file: Descriptor) -> str:
    data = blobs.read(files.key_in(blobs, file), 0, file.size_bytes)
    if Digest.of(data) != file.digest:
        raise Corrupt("DIGEST_MISMATCH", f"{file.path}: the stored bytes no longer hash to {file.digest}")
    return hub.git_id(data)
