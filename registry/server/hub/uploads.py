"""How the files of a Hub client get here: the mode of each file, and the links of its large ones (Git LFS batch).

- Links need no headers, because clients send none. Bytes that a version visible to the actor has are not asked for.
- huggingface_hub 1.20 and later send large files to Xet without asking, if they are installed with it. There is no Xet
  here, so from these clients all but very large files come inside the commit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine

from registry import hub, names
from registry.digest import Digest
from registry.errors import Invalid, RegistryError
from registry.findings import Finding
from registry.hub.shapes import File
from registry.names import AdapterName
from registry.server import failpoints
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.models import PushBlobRow
from registry.server.hub import drafts, refusals, version_push
from registry.server.settings import Settings
from registry.server.storage.blobs import AnyUpload, BlobStore, staging_key_of
from registry.versions.files import kind_of, refusal_of

IN_COMMIT_LIMIT_BYTES = 256 * 2**20
"""Up to this size a file comes inside the commit from clients that would send it to Xet."""
_HUB_VERSION = re.compile(r"\bhf_hub/(\d+)\.(\d+)")
_UNSAFE = re.compile(r"(?:\A|/)(?:\.\.?)?(?:/|\Z)|[\\\0]")
"""What no honest client has in a path: a part that is empty, `.` or `..`, a backslash or NUL."""


@dataclass(frozen=True, slots=True)
class FileMode:
    """How a client is to send a file. `ignored`: why the registry does not hold it; the client leaves it out."""

    path: str
    is_large: bool
    ignored: str = ""
    oid: str = ""
    """The identity of the file at the branch now, so that an unchanged one is not sent."""


def uses_xet(agent: str) -> bool:
    """Whether a client sends large files to Xet without asking the server."""
    version = _HUB_VERSION.search(agent)
    return version is not None and (int(version[1]), int(version[2])) >= (1, 20)


def choose_modes(files: Sequence[tuple[str, int]], current: Mapping[str, File], *, agent: str) -> list[FileMode]:
    """The mode of each file, given as path and size. `Invalid` for a path that is unsafe or of a whole model."""
    return [_choose_mode(path, size_bytes, current.get(path), agent) for path, size_bytes in files]


def _choose_mode(path: str, size_bytes: int, current: File | None, agent: str) -> FileMode:
    if _UNSAFE.search(path):
        names.file_path(path)
    refusals.refuse_model_file(path)
    try:
        names.file_path(path)
    except Invalid as error:
        return FileMode(path, False, error.detail)
    if kind_of(path) is None:
        return FileMode(path, False, f"{path} {refusal_of(path).message}")
    is_large = hub.is_large(drafts.describe(path, Digest.of(b""), size_bytes))
    if is_large and uses_xet(agent) and size_bytes <= IN_COMMIT_LIMIT_BYTES:
        return FileMode(path, False)
    return FileMode(path, is_large, oid=current.etag if current is not None else "")


# ------------------------------------------------------------------ Git LFS batch
@dataclass(frozen=True, slots=True)
class LargeFile:
    """The answer about one large file: how to send it, or nothing if it is here."""

    digest: Digest
    size_bytes: int
    upload: AnyUpload | None


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
        readable = version_push.find_readable(session, actor, sizes)
        upload = drafts.find_upload(session, actor, name)
        missing = {digest: size for digest, size in sizes.items() if digest not in readable}
        located = drafts.locate(session, [upload.id], missing) if upload is not None else {}
        staged = {digest: row for digest, row in located.items() if _is_sent(row, missing[digest])}
        new = {digest: size for digest, size in missing.items() if digest not in staged}
        db.begin_writing(session)
        upload = drafts.open_upload(session, actor, name, new, settings)
        drafts.hold_blobs(session, upload, {digest: staging_key_of(upload.id, digest) for digest in new}, new)
    failpoints.reach("hub.lfs.after_rows")
    arrived = {digest for digest, row in staged.items() if _has_arrived(blobs, drafts.key_of_blob(row), row.size_bytes)}
    uploads: dict[Digest, AnyUpload] = {}
    for digest in missing.keys() - arrived:
        uploads[digest] = blobs.presign_any(
            upload.id, digest, missing[digest], seconds=settings.link_seconds, owner=actor.link_owner(upload.token_id)
        )
    moved = {digest: link.key for digest, link in uploads.items() if link.key != staging_key_of(upload.id, digest)}
    if moved:
        with db.session(engine) as session:
            drafts.hold_blobs(session, upload, moved, missing)
    return [LargeFile(digest, size, uploads.get(digest)) for digest, size in sizes.items()]


def _is_sent(blob: PushBlobRow, size_bytes: int) -> bool:
    """Whether an upload stages this blob with this size; another one may be asked for until its bytes are verified."""
    if blob.is_stored and blob.size_bytes != size_bytes:
        message = f"has {blob.size_bytes} bytes, and not {size_bytes}"
        raise Invalid.from_finding("BLOB_MISMATCH", Finding("blob.size_mismatch", blob.digest, message))
    return blob.size_bytes == size_bytes and not blob.is_taken_over


def _has_arrived(blobs: BlobStore, key: str, size_bytes: int) -> bool:
    stat = blobs.stat(key)
    return stat is not None and stat.size_bytes == size_bytes


def verify_upload(
    engine: Engine, actor: Actor, name: AdapterName, digest: Digest, size_bytes: int, *, blobs: BlobStore
) -> None:
    """Check that a blob of this size has arrived; the commit hashes it. `Conflict` (UPLOAD_INCOMPLETE)."""
    with db.session(engine, write=False) as session:
        readable = version_push.find_readable(session, actor, {digest: size_bytes})
        upload = drafts.find_upload(session, actor, name)
        row = drafts.locate(session, [upload.id], [digest]).get(digest) if upload is not None else None
    if digest in readable:
        return
    if row is None:
        raise version_push.not_uploaded([drafts.describe(f"sha256:{digest.hex}", digest, size_bytes)])
    key = drafts.key_of_blob(row)
    if blobs.stat(key) is None:
        blobs.complete_parts(key, row.size_bytes)
    if row.size_bytes != size_bytes or not _has_arrived(blobs, key, size_bytes):
        raise version_push.not_uploaded([drafts.describe(f"sha256:{digest.hex}", digest, size_bytes)])


def refuse_xet() -> RegistryError:
    """The error for a client that asks for a Xet token."""
    return Invalid(
        "REQUEST_INVALID",
        f"this registry has no Xet, and a file over {IN_COMMIT_LIMIT_BYTES // 2**20} MiB does not fit into a commit",
        next_step="set HF_HUB_DISABLE_XET=1 before Python starts, or use `adapter push`",
    )
