"""How the files of a Hub client get here: the mode of each file, and the links of its large ones (Git LFS batch).

- Clients of the Hub send no headers, so a link cannot bind them to a SHA-256: all bytes come through this server, by
  its own links. Bytes that a version visible to the actor has are not asked for.
- huggingface_hub 1.20 and later send large files to Xet without asking, if they are installed with it (`hub.xet`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlmodel import Session

from registry import hub, names
from registry.digest import Digest
from registry.errors import Invalid
from registry.findings import Finding
from registry.hub.shapes import File
from registry.names import AdapterName
from registry.server import failpoints
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.models.pushes import PushBlobRow, PushRow
from registry.server.hub import drafts, refusals, version_push
from registry.server.push import receive
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore, staging_key_of
from registry.versions.files import kind_of, refusal_of

_UNSAFE = re.compile(r"(?:\A|/)(?:\.\.?)?(?:/|\Z)|[\\\0]")
"""What no honest client has in a path: a part that is empty, `.` or `..`, a backslash or NUL."""
_CHECKPOINT = re.compile(r"(?:\A|/)(?:checkpoint-[0-9]+|last-checkpoint)/")
"""Folders in which trainers keep checkpoints: each holds an adapter of its own."""


@dataclass(frozen=True, slots=True)
class FileMode:
    """How a client is to send a file. `ignored`: why the registry does not hold it; the client leaves it out."""

    path: str
    is_large: bool
    ignored: str = ""
    oid: str = ""
    """The identity of the file at the branch now, so that an unchanged one is not sent."""


def choose_modes(files: Sequence[tuple[str, int]], current: Mapping[str, File]) -> list[FileMode]:
    """The mode of each file, given as path and size. `Invalid` for a path that is unsafe or of a whole model."""
    return [_choose_mode(path, size_bytes, current.get(path)) for path, size_bytes in files]


def _choose_mode(path: str, size_bytes: int, current: File | None) -> FileMode:
    if _UNSAFE.search(path):
        names.file_path(path)
    refusals.refuse_model_file(path)
    try:
        names.file_path(path)
    except Invalid as error:
        return FileMode(path, False, error.detail)
    if _CHECKPOINT.search(path):
        return FileMode(path, False, f"{path} is in the folder of a checkpoint; push that folder as its own adapter")
    if kind_of(path) is None:
        return FileMode(path, False, f"{path} {refusal_of(path).message}")
    is_large = hub.is_large(drafts.describe(path, Digest.of(b""), size_bytes))
    return FileMode(path, is_large, oid=current.etag if current is not None else "")


@dataclass(frozen=True, slots=True)
class LargeFile:
    """The response about one large file: the link to send it by, or nothing if it is here."""

    digest: Digest
    size_bytes: int
    url: str = ""


def request_uploads(
    engine: Engine,
    actor: Actor,
    name: AdapterName,
    sizes: Mapping[Digest, int],
    *,
    blobs: BlobStore,
    settings: Settings,
) -> list[LargeFile]:
    """Where to send each of these blobs, unless the actor has it. Errors as of a plan of a push."""
    with db.session(engine, write=False) as session:
        missing, sent = find_missing(session, actor, name, sizes)
        new = {digest: size for digest, size in missing.items() if digest not in sent}
        db.begin_writing(session)
        upload = reserve(session, actor, name, new, settings)
    failpoints.reach("hub.lfs.after_rows")
    seconds, owner = settings.link_seconds, upload.token_id
    urls: dict[Digest, str] = {}
    for digest in missing.keys() - find_arrived(sent):
        key = staging_key_of(upload.id, digest)
        urls[digest] = receive.sign_link(blobs, key, missing[digest], seconds=seconds, owner=owner)
    return [LargeFile(digest, size, urls.get(digest, "")) for digest, size in sizes.items()]


def find_missing(
    session: Session, actor: Actor, name: AdapterName, sizes: Mapping[Digest, int]
) -> tuple[dict[Digest, int], dict[Digest, PushBlobRow]]:
    """Those of these blobs that no version visible to the actor has, and the rows of those that its upload sends."""
    readable = version_push.find_readable(session, actor, name, sizes)
    upload = drafts.find_upload(session, actor, name)
    missing = {digest: size for digest, size in sizes.items() if digest not in readable}
    located = drafts.locate(session, [upload.id], missing) if upload is not None else {}
    return missing, {digest: row for digest, row in located.items() if _is_sent(row, missing[digest])}


def reserve(
    session: Session, actor: Actor, name: AdapterName, sizes: Mapping[Digest, int], settings: Settings,
    *, counted_bytes: int = 0,
) -> PushRow:  # fmt: skip
    """The upload of the actor, with a row for each of these blobs. The transaction must write.

    `counted_bytes` of them count in quotas already. Errors as of a plan of a push.
    """
    upload = drafts.open_upload(session, actor, name, sizes, settings, counted_bytes=counted_bytes)
    drafts.hold_blobs(session, upload, sizes)
    return upload


def find_arrived(sent: Mapping[Digest, PushBlobRow]) -> set[Digest]:
    """Those of these blobs whose bytes have arrived."""
    return {digest for digest, row in sent.items() if row.is_stored}


def _is_sent(blob: PushBlobRow, size_bytes: int) -> bool:
    """Whether an upload sends this blob with this size; another one may be asked for until its bytes are verified."""
    if blob.is_stored and blob.size_bytes != size_bytes:
        message = f"has {blob.size_bytes} bytes, and not {size_bytes}"
        raise Invalid.from_finding("BLOB_MISMATCH", Finding("blob.size_mismatch", blob.digest, message))
    return blob.size_bytes == size_bytes and not blob.is_taken_over


def verify_upload(engine: Engine, actor: Actor, name: AdapterName, digest: Digest, size_bytes: int) -> None:
    """Check that a blob of this size has arrived. `Conflict` (UPLOAD_INCOMPLETE)."""
    with db.session(engine, write=False) as session:
        if digest in version_push.find_readable(session, actor, name, {digest: size_bytes}):
            return
        upload = drafts.find_upload(session, actor, name)
        row = drafts.locate(session, [upload.id], [digest]).get(digest) if upload is not None else None
    if row is None or not row.is_stored or row.size_bytes != size_bytes:
        raise version_push.not_uploaded([drafts.describe(f"sha256:{digest.hex}", digest, size_bytes)])
