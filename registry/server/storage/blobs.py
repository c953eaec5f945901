"""The `BlobStore` protocol: bytes under keys that end in their own SHA-256; and `MemoryBlobs`.

    blobs/sha256/ab/<hex>      the final key of a blob (`key_of`)
    staging/<push id>/<hex>    what one push has sent and nobody has judged yet
    records/…/<hex>            what a version, a base or a tombstone is, so that rows can be made anew (`records`)
    audit/tile/…/<hex>         a piece of the audit log's tree, or the events below it (`audit.sequencer`)

Invariants
- Bytes appear under a key whole or not at all, and only after they hashed to the digest that the key ends in.
- `promote` creates a final key or finds it there; it replaces one, at once, only if it is told to, which is for bytes
  known to be damaged. It leaves the staging key alone, so a commit that fails after it can be repeated.
- `delete` and `promote` are idempotent. Nothing here holds a blob in memory, except MemoryBlobs.
- A digest is no permission: whoever calls has decided that the actor may have these bytes.

Example
    >>> store = MemoryBlobs()
    >>> store.put(key_of(Digest.of(b"x")), [b"x"], limit_bytes=1).size_bytes
    1
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn, Protocol

from registry.digest import Digest, Hasher
from registry.errors import Invalid, NotFound, Reason, TooLarge

CHUNK_BYTES = 2**20
Bytes = bytes | bytearray | memoryview
"""A chunk on its way in. It is only good until the call returns: the caller fills the same memory again."""

_WORD = r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
_KEY = re.compile(
    rf"(?:blobs/sha256/[0-9a-f]{{2}}|staging/[A-Za-z0-9_-]{{1,64}}|records/(?:base|tombstone/{_WORD}(?:/{_WORD})?|version/{_WORD}/{_WORD}/[0-9]{{1,9}})"
    r"|audit/tile/(?:[0-7]|entries)/(?:x[0-9]{3}/){0,5}[0-9]{3}(?:\.p/[0-9]{1,3})?)"
    r"/[0-9a-f]{64}\Z"
)


@dataclass(frozen=True, slots=True)
class Stat:
    """What the store knows of a key. `digest` is None when the store cannot vouch for it: then hash the bytes."""

    key: str
    size_bytes: int
    digest: Digest | None
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Link:
    """A URL that moves bytes without passing through this server, and the headers that it needs."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PartLink:
    """Where one part of a big blob goes by PUT: `size_bytes` of it from `start` on. It needs no headers of ours."""

    number: int
    start: int
    size_bytes: int
    url: str


class Sink(Protocol):
    """Where one blob is written, chunk by chunk. Nothing is under the key before `finish` returns."""

    def write(self, chunk: Bytes) -> None: ...
    def finish(self) -> Stat: ...
    def abort(self) -> None: ...


class BlobStore(Protocol):
    """The seam between the registry and the place where bytes live. tests/contract/test_blobs.py is its text."""

    kind: str

    def stat(self, key: str) -> Stat | None: ...
    def read(self, key: str, start: int, length: int) -> bytes: ...
    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]: ...
    def sink(self, key: str, *, limit_bytes: int) -> Sink: ...
    def put(self, key: str, chunks: Iterable[bytes], *, expect: Digest | None = None, limit_bytes: int) -> Stat: ...
    def promote(self, staging_key: str, digest: Digest, *, replace: bool = False) -> None: ...
    def sweep(self, older_than: timedelta, prefix: str = "") -> int: ...
    def delete(self, key: str) -> None: ...
    def list(self, prefix: str) -> Iterator[Stat]: ...
    def link(
        self,
        key: str,
        *,
        seconds: int,
        method: str,
        digest: Digest | None = None,
        size_bytes: int | None = None,
        file_name: str = "",
    ) -> Link | None: ...
    def parts(self, key: str, size_bytes: int, *, seconds: int) -> tuple[PartLink, ...] | None: ...
    def assemble(self, key: str, size_bytes: int) -> None: ...
    def path_of(self, key: str) -> Path | None: ...


def key_of(digest: Digest) -> str:
    """The final key of a blob."""
    return f"blobs/sha256/{digest.hex[:2]}/{digest.hex}"


def staging_key_of(push_id: str, digest: Digest) -> str:
    return f"staging/{push_id}/{digest.hex}"


def digest_of(key: str) -> Digest:
    """The digest that a key ends in. A key that is not one of ours is a bug of the caller: `ValueError`."""
    if not _KEY.match(key):
        raise ValueError(f"{key[:120]!r} is not the key of a blob")
    return Digest("sha256:" + key[-64:])


class Meter:
    """Counts and hashes what goes into a sink, and refuses what is too much or hashes to something else."""

    def __init__(self, key: str, limit_bytes: int) -> None:
        self.digest = digest_of(key)
        self._limit_bytes = limit_bytes
        self._hasher = Hasher()

    @property
    def size_bytes(self) -> int:
        return self._hasher.size_bytes

    def add(self, chunk: Bytes) -> None:
        self._hasher.update(chunk)
        if self._hasher.size_bytes > self._limit_bytes:
            message = f"the bytes sent go over the limit of {self._limit_bytes} bytes"
            raise TooLarge(
                "SIZE_INVALID",
                f"blob {self.digest}: {message}",
                reasons=[Reason("blob.too_large", self.digest, message)],
            )

    def check(self) -> None:
        found = self._hasher.digest()
        if found != self.digest:
            message = f"the {self._hasher.size_bytes} bytes sent hash to {found}"
            raise Invalid(
                "BLOB_MISMATCH",
                f"blob {self.digest}: {message}",
                reasons=[Reason("blob.digest_mismatch", self.digest, message)],
            )


def fill(sink: Sink, chunks: Iterable[bytes]) -> Stat:
    """Everything that `chunks` yields goes into the sink; whatever goes wrong, nothing is left behind."""
    try:
        for chunk in chunks:
            sink.write(chunk)
        return sink.finish()
    except BaseException:
        sink.abort()
        raise


class WithoutLinks:
    """The methods of a `BlobStore` that has no URLs: all bytes pass through the server."""

    def link(self, *_args: Any, **_options: Any) -> Link | None:
        return None

    def parts(self, *_args: Any, **_options: Any) -> tuple[PartLink, ...] | None:
        return None

    def assemble(self, key: str, _size_bytes: int) -> None:
        digest_of(key)


class MemoryBlobs(WithoutLinks):
    """Blobs in a dictionary: for tests and for nothing that must last."""

    kind = "memory"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._data: dict[str, tuple[bytes, datetime]] = {}

    def stat(self, key: str) -> Stat | None:
        digest = digest_of(key)
        kept = self._data.get(key)
        return Stat(key, len(kept[0]), digest, kept[1]) if kept else None

    def read(self, key: str, start: int, length: int) -> bytes:
        digest_of(key)
        kept = self._data.get(key)
        if kept is None:
            absent(key)
        return kept[0][start : start + length]

    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        data = self.read(key, start, 2**62 if length is None else length)
        return (data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES))

    def sink(self, key: str, *, limit_bytes: int) -> Sink:
        return _MemorySink(self, key, limit_bytes)

    def put(self, key: str, chunks: Iterable[bytes], *, expect: Digest | None = None, limit_bytes: int) -> Stat:
        check_expectation(key, expect)
        return fill(self.sink(key, limit_bytes=limit_bytes), chunks)

    def promote(self, staging_key: str, digest: Digest, *, replace: bool = False) -> None:
        with self._lock:
            kept = self._data.get(staging_key)
            if key_of(digest) in self._data and not (replace and kept):
                return
            if kept is None:
                absent(staging_key)
            self._data[key_of(digest)] = (kept[0], datetime.now(UTC))

    def sweep(self, _older_than: timedelta, _prefix: str = "") -> int:
        return 0

    def delete(self, key: str) -> None:
        digest_of(key)
        with self._lock:
            self._data.pop(key, None)

    def list(self, prefix: str) -> Iterator[Stat]:
        found = (self.stat(key) for key in sorted(self._data) if key.startswith(prefix))
        return (stat for stat in found if stat is not None)

    def path_of(self, key: str) -> Path | None:
        digest_of(key)
        return None

    def keep(self, key: str, data: bytes) -> Stat:
        with self._lock:
            self._data[key] = (data, datetime.now(UTC))
        return Stat(key, len(data), digest_of(key), self._data[key][1])


class _MemorySink:
    def __init__(self, store: MemoryBlobs, key: str, limit_bytes: int) -> None:
        self._store, self._key = store, key
        self._meter = Meter(key, limit_bytes)
        self._chunks: list[bytes] = []

    def write(self, chunk: Bytes) -> None:
        self._meter.add(chunk)
        self._chunks.append(bytes(chunk))

    def finish(self) -> Stat:
        self._meter.check()
        return self._store.keep(self._key, b"".join(self._chunks))

    def abort(self) -> None:
        self._chunks.clear()


def check_expectation(key: str, expect: Digest | None) -> None:
    """A caller that expects another digest than its key says is refused before a byte is read."""
    if expect is not None and expect != digest_of(key):
        raise Invalid("BLOB_MISMATCH", f"blob {expect}: it was about to be put under the key of {digest_of(key)}")


def absent(key: str) -> NoReturn:
    raise NotFound("BLOB_UNKNOWN", f"blob {digest_of(key)} is not in the store")
