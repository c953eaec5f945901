"""The interface of blob stores: bytes under keys that end in their own SHA-256. Bytes have three ways in.

    open_writer      through this server, which hashes them on their way to their final key
    presign_upload   a client's PUT to its staging key, bound to the SHA-256 and to a key where nothing is; or
    presign_upload   a client's PUTs of parts of a large blob; and then `collect`, which makes them final

    blobs/sha256/ab/<hex>      the final key of a blob (`key_of`); no client has a link to write here
    staging/<push id>/<hex>    what a client writes for one push; nothing is ever read from here but by `collect`
    refs/<ns>/<name>/<number>/<hex>   a version, whose manifest and files are blobs (`catalog.refs`)
    bases/<hex>                a base
    backups/<time>/<hex>       a backup of the database (`maintenance.backup`)
    audit/tile/…/<hex>         a tile of the audit log's tree, or the events below it (`audit.sequencer`)

- Bytes appear under a final key whole or not at all, durable, and only after they hashed to the digest that the key
  ends in. Writing there again replaces equal bytes, or damaged ones; it takes as long as if nothing was there.
- `delete` is idempotent. A store never has a whole blob in memory.
- Stores check no permissions: the caller has decided that the actor may have these bytes.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NoReturn
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
_KEY = re.compile(
    rf"(?:blobs/sha256/[0-9a-f]{{2}}|staging/[A-Za-z0-9_-]{{1,64}}|refs/{_WORD}/{_WORD}/[0-9]{{1,9}}|bases|backups/[0-9]{{8}}T[0-9]{{6}}Z"
    r"|audit/tile/(?:[0-7]|entries)/(?:x[0-9]{3}/){0,5}[0-9]{3}(?:\.p/[0-9]{1,3})?)"
    r"/[0-9a-f]{64}\Z"
)


@dataclass(frozen=True, slots=True)
class Stat:
    """What the store knows about a key."""

    key: str
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Link:
    """A presigned URL for the upload of a whole blob, and the headers that it needs."""

    url: str = field(repr=False)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PartLink:
    """A presigned URL for the PUT of one part: `size_bytes` of the blob from `start` on. It needs no headers."""

    number: int
    start: int
    size_bytes: int
    url: str = field(repr=False)


class BlobWriter(ABC):
    """Writes one blob, chunk by chunk. Nothing is under the key before `finish` returns.

    The hash of all bytes is compared here, whatever the store is, before `_publish`.
    """

    def __init__(self, key: str, limit_bytes: int) -> None:
        self._key, self._limit_bytes = key, limit_bytes
        self._digest, self._hasher = digest_of(key), Hasher()

    def write(self, chunk: Bytes) -> None:
        """Write a chunk. `TooLarge` (SIZE_INVALID) beyond the limit."""
        self._hasher.update(chunk)
        if self._hasher.size_bytes > self._limit_bytes:
            finding = Finding("blob.too_large", self._digest, f"has more than the allowed {self._limit_bytes} bytes")
            raise TooLarge("SIZE_INVALID", f"blob {self._digest} {finding.message}", findings=[finding])
        self._append(chunk)

    def finish(self) -> Stat:
        """Make the blob available under its key. `Invalid` (BLOB_MISMATCH) if its bytes have another digest."""
        size_bytes, digest = self._hasher.size_bytes, self._hasher.digest()
        if digest != self._digest:
            finding = Finding("blob.digest_mismatch", self._digest, f"the {size_bytes} bytes sent hash to {digest}")
            raise Invalid("BLOB_MISMATCH", f"blob {self._digest}: {finding.message}", findings=[finding])
        self._publish()
        return Stat(self._key, size_bytes, datetime.now(UTC))

    @abstractmethod
    def abort(self) -> None:
        """Discard what was written. May be called at any time, also twice."""

    @abstractmethod
    def _append(self, chunk: Bytes) -> None:
        """Keep a chunk where no one reads it."""

    @abstractmethod
    def _publish(self) -> None:
        """Make all chunks durable, then available under the key."""


class BlobStore(ABC):
    """A store of blobs. tests/contract/test_blob_store.py specifies the behavior of every implementation."""

    kind: str
    is_remote = False
    """Whether each call waits for another machine."""
    capabilities: Mapping[str, bool] = {}
    """What the store was asked for, by name. If one is missing, all bytes pass through this server."""
    links: LinkSigner | None = None
    """Signs links that this server itself handles. None: nothing serves this store."""
    link_limit_seconds: int = 7 * 24 * 3600
    """The longest life of a link."""

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
    def list(self, prefix: str) -> Iterator[Stat]:
        """Yield every key under a prefix that ends in `/`."""

    @abstractmethod
    def open_writer(self, key: str, *, limit_bytes: int) -> BlobWriter:
        """Begin to write a blob that has at most `limit_bytes`. `write_blob` does it as a whole."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete a key if it exists. No link that was given for it writes there again."""

    @abstractmethod
    def delete_unfinished(self, older_than: timedelta) -> int:
        """Delete uploads that were begun and never finished; return how many."""

    def presign_read(
        self, key: str, size_bytes: int, *, seconds: int, owner: str = "", file_name: str = "", method: str = "GET"
    ) -> str | None:
        """Presign the URL of a GET or HEAD; None if the bytes are read by the routes of the API.

        `owner` is the id of the token that gets the link.
        """
        return None

    def presign_upload(self, key: str, size_bytes: int, *, seconds: int) -> Link | tuple[PartLink, ...] | None:
        """Presign the PUT of a blob to its staging key, or of its parts that are missing yet.

        None if the bytes have to pass through this server.
        """
        return None

    def collect(self, key: str, size_bytes: int) -> Stat | None:
        """Make what was written under a staging key available under the final key; None if it has not all arrived.

        Bytes that the store has not hashed are hashed on their way: `Invalid` (BLOB_MISMATCH). The staging key stays,
        so that this can be repeated.
        """
        return None


def write_blob(store: BlobStore, key: str, chunks: Iterable[Bytes], *, limit_bytes: int) -> Stat:
    """Write a blob as a whole. After any error, also one that `chunks` raises, nothing has changed."""
    writer = store.open_writer(key, limit_bytes=limit_bytes)
    try:
        for chunk in chunks:
            writer.write(chunk)
        return writer.finish()
    except BaseException:
        writer.abort()
        raise


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
    """Return the key under which a client writes a blob of a push. A link to this server names it, too."""
    return f"staging/{push_id}/{digest.hex}"


def digest_of(key: str) -> Digest:
    """Return the digest that a key ends in. `ValueError` for anything that is not a key: a bug of the caller."""
    if not _KEY.match(key):
        raise ValueError(f"{key[:120]!r} is not the key of a blob")
    return Digest("sha256:" + key[-64:])


def invalid_store(url: str) -> Invalid:
    """The error for a URL that names no store."""
    settings, forms = "REGISTRY_BLOBS or REGISTRY_SECOND_COPY", "'file:///FOLDER' nor 's3://BUCKET/PREFIX'"
    return Invalid("SETTING_INVALID", f"{settings}: {hide_secrets(url)[:120]!r} is neither {forms}")


class RequestRejected(Unavailable):
    """The store responded, and rejects requests like this one, as those to a bucket that does not exist."""


def raise_unknown(key: str) -> NoReturn:
    """Raise `NotFound` (BLOB_UNKNOWN) for this key."""
    raise NotFound("BLOB_UNKNOWN", f"blob {digest_of(key)} is not in the store")
