"""`MemoryBlobs`: a blob store in a dictionary."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from registry.digest import Digest
from registry.server.storage.blobs import (
    WHOLE_BYTES,
    BlobStore,
    BlobWriter,
    Bytes,
    DigestVerifier,
    Stat,
    digest_of,
    key_of,
    raise_unknown,
)
from registry.versions.files import CHUNK_BYTES


class MemoryBlobs(BlobStore):
    """The smallest implementation of the interface. Thread-safe."""

    kind = "memory"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blobs: dict[str, tuple[bytes, datetime]] = {}

    def stat(self, key: str) -> Stat | None:
        digest = digest_of(key)
        blob = self._blobs.get(key)
        return Stat(key, len(blob[0]), digest, blob[1]) if blob else None

    def read(self, key: str, start: int, length: int) -> bytes:
        digest_of(key)
        blob = self._blobs.get(key)
        if blob is None:
            raise_unknown(key)
        return blob[0][start : start + length]

    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        data = self.read(key, start, WHOLE_BYTES if length is None else length)
        return (data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES))

    def open_writer(self, key: str, *, limit_bytes: int, is_hashed: bool = False) -> BlobWriter:
        return _MemoryWriter(self, key, DigestVerifier(key, limit_bytes, is_hashed=is_hashed))

    def promote(self, staging_key: str, digest: Digest, *, replace: bool = False) -> None:
        with self._lock:
            staged = self._blobs.get(staging_key)
            if key_of(digest) in self._blobs and not (replace and staged):
                return
            if staged is None:
                raise_unknown(staging_key)
            self._blobs[key_of(digest)] = (staged[0], datetime.now(UTC))

    def delete(self, key: str) -> None:
        digest_of(key)
        with self._lock:
            self._blobs.pop(key, None)

    def delete_unfinished(self, _older_than: timedelta, _prefix: str = "") -> int:
        return 0

    def list(self, prefix: str) -> Iterator[Stat]:
        stats = (self.stat(key) for key in sorted(self._blobs) if key.startswith(prefix))
        return (stat for stat in stats if stat is not None)

    def insert(self, key: str, data: bytes) -> Stat:
        """Store verified bytes."""
        with self._lock:
            self._blobs[key] = (data, datetime.now(UTC))
        return Stat(key, len(data), digest_of(key), self._blobs[key][1])


class _MemoryWriter:
    def __init__(self, store: MemoryBlobs, key: str, verifier: DigestVerifier) -> None:
        self._store, self._key, self._verifier = store, key, verifier
        self._chunks: list[bytes] = []

    def write(self, chunk: Bytes) -> None:
        self._verifier.update(chunk)
        self._chunks.append(bytes(chunk))

    def finish(self) -> Stat:
        self._verifier.verify()
        return self._store.insert(self._key, b"".join(self._chunks))

    def abort(self) -> None:
        self._chunks.clear()
