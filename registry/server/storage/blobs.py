"""The interface of blob stores: bytes under keys that end in their own SHA-256.

    blobs/sha256/ab/<hex>      the final key of a blob (`key_of`)
    staging/<push id>/<hex>    what one push has sent, before it is verified; clients may have links to write here
    staging/<push id>/any/<hex>      the same by links that are bound to no digest (`BlobStore.presign_any`)
    staging/<push id>/upload/<hex>   the server's marker of a direct upload (`s3.direct_upload`); no one has a link
    staging/<push id>/copy-<random>/<hex>   what one commit hashes and promotes (`snapshot`); no one has a link
    records/…/<hex>            backup of the rows of a version, a base or a tombstone (`catalog.metadata_backup`)
    audit/tile/…/<hex>         a tile of the audit log's tree, or the events below it (`audit.sequencer`)

- Bytes appear under a key whole or not at all, and only after they hashed to the digest that the key ends in.
- `promote` creates a final key unless it exists. It replaces one, atomically, only with `replace`, for damaged bytes.
  It keeps the staging key, so that a commit that fails afterwards can be repeated.
- `delete` and `promote` are idempotent. A store never has a whole blob in memory.
- Promoted blobs are durable after one `sync` of them all.
- Stores check no permissions: the caller has decided that the actor may have these bytes.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn, Protocol
from urllib.parse import quote

from registry.digest import Digest, Hasher
from registry.errors import Invalid, NotFound, TooLarge, Unavailable
from registry.findings import Finding
from registry.server.settings import hide_secrets
from registry.server.storage.signed_links import LinkSigner

WHOLE_BYTES = 2**40
"""More than any blob has."""
Bytes = bytes | bytearray | memoryview
"""An incoming chunk. It is valid only until the call returns, because the caller reuses the memory."""

_WORD = r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
_BASE_WORD = r"[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?"
_TOMBSTONE = rf"tombstone/(?:@{_BASE_WORD}/{_BASE_WORD}|{_WORD}(?:/{_WORD})?)"
_KEY = re.compile(
    rf"(?:blobs/sha256/[0-9a-f]{{2}}|staging/[A-Za-z0-9_-]{{1,64}}(?:/any|/upload|/copy-[0-9a-f]{{16}})?|records/(?:base|{_TOMBSTONE}|version/{_WORD}/{_WORD}/[0-9]{{1,9}})"
    r"|audit/tile/(?:[0-7]|entries)/(?:x[0-9]{3}/){0,5}[0-9]{3}(?:\.p/[0-9]{1,3})?)"
    r"/[0-9a-f]{64}\Z"
)


@dataclass(frozen=True, slots=True)
class Stat:
    """What the store knows about a key. `digest` is None if it has not verified it: then hash a `snapshot`."""

    key: str
    size_bytes: int
    digest: Digest | None
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Link:
    """A presigned URL for an upload, and the headers that it needs."""

    url: str = field(repr=False)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PartLink:
    """A presigned URL for the PUT of one part: `size_bytes` of the blob from `start` on. It needs no headers."""

    number: int
    start: int
    size_bytes: int
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class AnyUpload:
    """Links for a client that sends no headers of its own: one for the whole blob, or one for each part.

    `key` is where the bytes arrive. All parts but the last have `part_bytes`; 0: the blob is sent in one piece.
    """

    key: str
    urls: tuple[str, ...] = field(repr=False)
    part_bytes: int = 0


class BlobWriter(Protocol):
    """Writes one blob, chunk by chunk. Nothing is under the key before `finish` returns."""

    def write(self, chunk: Bytes) -> None:
        """Write a chunk."""

    def finish(self) -> Stat:
        """Verify the digest and make the blob available under its key."""

    def abort(self) -> None:
        """Discard what was written. May be called at any time, also twice."""


def write_all(writer: BlobWriter, chunks: Iterable[Bytes]) -> Stat:
    """Write the chunks and finish; abort after any error."""
    try:
        for chunk in chunks:
            writer.write(chunk)
        return writer.finish()
    except BaseException:
        writer.abort()
        raise


class BlobStore(ABC):
    """A store of blobs. tests/contract/test_blob_store.py specifies the behavior of every implementation."""

    kind: str
    links: LinkSigner | None = None
    """Signs links that this server itself handles. None: nothing serves this store."""
    link_limit_seconds: int = 7 * 24 * 3600
    """The longest life of a link."""

    @property
    def quick(self) -> "BlobStore":
        """Return this store for reads that fail soon: a page shows its other parts meanwhile."""
        return self

    @abstractmethod
    def stat(self, key: str) -> Stat | None:
        """Look a key up; None if nothing is there."""

    @abstractmethod
    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a range in chunks. `NotFound` is raised by this call, before the first chunk."""

    def read(self, key: str, start: int, length: int) -> bytes:
        """Return the bytes of a small range."""
        return b"".join(self.open(key, start, length))

    @abstractmethod
    def open_writer(self, key: str, *, limit_bytes: int, is_hashed: bool = False) -> BlobWriter:
        """Begin to write a blob that has at most `limit_bytes`; `is_hashed` as of `put`."""

    def upload_key_of(self, staging_key: str) -> str:
        """Return the key under which this server writes what a client sends through it for this staging key.

        A store in which a copy is expensive takes the final key at once: only verified bytes get there, and the push
        that sent them has a reference to them. `staging/` is for what clients write themselves.
        """
        return staging_key

    def is_staged(self, size_bytes: int) -> bool:
        """Whether a blob of this size that a plan requested is first written under `staging/`."""
        return True

    def put(
        self, key: str, chunks: Iterable[bytes], *,
        expect: Digest | None = None, limit_bytes: int, is_hashed: bool = False,
    ) -> Stat:  # fmt: skip
        """Write a blob. `Invalid` (BLOB_MISMATCH) if its bytes, or `expect`, differ from the digest in the key.

        `is_hashed`: the caller has hashed the same `limit_bytes` bytes to the digest in the key. They are only counted.
        """
        if expect is not None:
            require_digest(key, expect)
        return write_all(self.open_writer(key, limit_bytes=limit_bytes, is_hashed=is_hashed), chunks)

    def copy(self, key: str, target: str, size_bytes: int) -> None:
        """Make bytes that `put` has stored available under another key of the same digest, too; `NotFound`.

        By default they are read and hashed once more.
        """
        self.put(target, self.open(key), expect=digest_of(key), limit_bytes=size_bytes)

    @abstractmethod
    def promote(self, staging_key: str, digest: Digest, *, replace: bool = False) -> None:
        """Make a staged blob, or its snapshot, available under its final key. It survives a power cut after `sync`."""

    def sync(self, digests: Iterable[Digest]) -> None:
        """Wait until these promoted blobs survive a power cut."""

    def snapshot(self, stat: Stat) -> Stat:
        """Copy staged bytes that a client may still replace to a key that no client can write: hash and promote these.

        The caller deletes that key. A store that no one else writes to returns `stat`.
        """
        return stat

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete a key if it exists."""

    def end_staging(self, key: str) -> None:
        """Delete what an ended push has staged, so that no link of the push writes there again."""
        self.delete(key)

    @property
    def has_conditional_links(self) -> bool:
        """Whether `presign_upload` gives links that write whenever their key does not exist."""
        return False

    @abstractmethod
    def delete_unfinished(self, older_than: timedelta, prefix: str = "") -> int:
        """Delete uploads that were begun under `prefix` and never finished; return how many."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[Stat]:
        """Yield every key under a prefix that ends in `/`."""

    def presign_read(
        self, key: str, size_bytes: int, *, seconds: int, owner: str = "", file_name: str = "", method: str = "GET"
    ) -> str | None:
        """Presign the URL of a GET or HEAD; None if the bytes are read by the routes of the API.

        `owner` is the id of the token that gets the link.
        """
        return None

    def presign_upload(self, key: str, size_bytes: int, *, seconds: int) -> Link | None:
        """Presign the PUT of a blob to its staging key; None if the bytes have to pass through this server."""
        return None

    def presign_any(self, push_id: str, digest: Digest, size_bytes: int, *, seconds: int, owner: str) -> AnyUpload:
        """Presign an upload that needs no headers, by default to this server.

        If the link is not bound to the digest, the bytes arrive under a key of their own, and count as unverified.
        """
        key = staging_key_of(push_id, digest)
        return AnyUpload(key, (self.sign_upload(key, size_bytes, seconds=seconds, owner=owner).url,))

    def sign_upload(self, key: str, size_bytes: int, *, seconds: int, owner: str) -> Link:
        """Sign a link to this server for the PUT of a blob to its staging key."""
        if self.links is None or not key.startswith("staging/") or not digest_of(key):
            raise ValueError(f"no link to {key[:120]!r} can be signed")
        return Link(self.links.sign("PUT", key, size_bytes, seconds=seconds, owner=owner))

    def presign_parts(self, key: str, size_bytes: int, *, seconds: int) -> tuple[PartLink, ...] | None:
        """Presign the PUTs of the parts that are missing yet; None for a blob that is sent in one piece."""
        return None

    def complete_parts(self, key: str, size_bytes: int) -> None:
        """Assemble a blob from the parts sent, if all are there. The caller has to verify its digest."""

    def local_path(self, key: str) -> Path | None:
        """Return where the blob is, or would be, if blobs are files of this machine."""
        digest_of(key)
        return None

    def describe(self) -> dict[str, bool]:
        """Return the store's capabilities by name, for /health."""
        return {}


def attachment(file_path: str) -> str:
    """Return the Content-Disposition that saves a file under its name (RFC 6266), which may hold any character."""
    name = file_path.rsplit("/", 1)[-1]
    safe_name = re.sub(r"[^A-Za-z0-9._-]", "_", name) or "blob"
    encoded = "" if safe_name == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'attachment; filename="{safe_name}"{encoded}'


def key_of(digest: Digest) -> str:
    """Return the final key of a blob."""
    return f"blobs/sha256/{digest.hex[:2]}/{digest.hex}"


def staging_key_of(push_id: str, digest: Digest) -> str:
    """Return the key under which a push stages a blob."""
    return f"staging/{push_id}/{digest.hex}"


def any_key_of(push_id: str, digest: Digest) -> str:
    """Return the key for links that are bound to no digest. Nothing that is under it counts as verified."""
    return f"staging/{push_id}/any/{digest.hex}"


def is_any_key(key: str) -> bool:
    """Whether a key is one for links that are bound to no digest."""
    return key.startswith("staging/") and key.split("/")[2] == "any"


def digest_of(key: str) -> Digest:
    """Return the digest that a key ends in. `ValueError` for anything that is not a key: a bug of the caller."""
    if not _KEY.match(key):
        raise ValueError(f"{key[:120]!r} is not the key of a blob")
    return Digest("sha256:" + key[-64:])


def require_digest(key: str, digest: Digest) -> None:
    """Raise `Invalid` (BLOB_MISMATCH) unless a key ends in this digest."""
    if digest_of(key) != digest:
        raise Invalid("BLOB_MISMATCH", f"blob {digest} cannot be stored under the key of {digest_of(key)}")


def invalid_store(url: str) -> Invalid:
    """The error for a URL that names no store."""
    settings, forms = "REGISTRY_BLOBS or REGISTRY_SECOND_COPY", "'file:///FOLDER' nor 's3://BUCKET/PREFIX'"
    return Invalid("SETTING_INVALID", f"{settings}: {hide_secrets(url)[:120]!r} is neither {forms}")


class RequestRejected(Unavailable):
    """The store responded, and rejects requests like this one, as those to a bucket that does not exist."""


def raise_unknown(key: str) -> NoReturn:
    """Raise `NotFound` (BLOB_UNKNOWN) for this key."""
    raise NotFound("BLOB_UNKNOWN", f"blob {digest_of(key)} is not in the store")


class DigestVerifier:
    """Counts and hashes the bytes of a blob on their way in, and rejects too many or wrong ones.

    Bytes that the caller has hashed (`is_hashed`) are only counted: there have to be `limit_bytes` of them.
    """

    def __init__(self, key: str, limit_bytes: int, *, is_hashed: bool = False) -> None:
        self.digest = digest_of(key)
        self.size_bytes = 0
        self._limit_bytes = limit_bytes
        self._hasher = None if is_hashed else Hasher()

    def update(self, chunk: Bytes) -> None:
        """Count and hash a chunk. `TooLarge` (SIZE_INVALID) beyond the limit."""
        if self._hasher is not None:
            self._hasher.update(chunk)
        self.size_bytes += len(chunk)
        if self.size_bytes > self._limit_bytes:
            message = f"has more than the allowed {self._limit_bytes} bytes"
            findings = [Finding("blob.too_large", self.digest, message)]
            raise TooLarge("SIZE_INVALID", f"blob {self.digest} {message}", findings=findings)

    def verify(self) -> None:
        """Check the digest of all bytes. `Invalid` (BLOB_MISMATCH) if it differs from the key's."""
        if self._hasher is not None:
            digest = self._hasher.digest()
            if digest != self.digest:
                self._reject("blob.digest_mismatch", f"the {self.size_bytes} bytes sent hash to {digest}")
        elif self.size_bytes != self._limit_bytes:
            self._reject("blob.size_mismatch", f"{self.size_bytes} bytes were sent, not {self._limit_bytes}")

    def _reject(self, rule: str, message: str) -> NoReturn:
        findings = [Finding(rule, self.digest, message)]
        raise Invalid("BLOB_MISMATCH", f"blob {self.digest}: {message}", findings=findings)
