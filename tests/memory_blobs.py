"""`MemoryBlobs`: a blob store in a dictionary."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from registry.server.storage.blobs import (
    WHOLE_BYTES,
    BlobStore,
    BlobWriter,
    Bytes,
    Stat,
    digest_of,
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
        digest_of(key)
        blob = self._blobs.get(key)
        return Stat(key, len(blob[0]), blob[1]) if blob else None

    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        digest_of(key)
        blob = self._blobs.get(key)
        if blob is None:
            raise_unknown(key)
        data = blob[0][start : start + (WHOLE_BYTES if length is None else length)]
        return (data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES))

    def list(self, prefix: str) -> Iterator[Stat]:
        stats = (self.stat(key) for key in sorted(self._blobs) if key.startswith(prefix))
        return (stat for stat in stats if stat is not None)

    def open_writer(self, key: str, *, limit_bytes: int) -> BlobWriter:
        return _MemoryWriter(self, key, limit_bytes)

    def delete(self, key: str) -> None:
        digest_of(key)
        with self._lock:
            self._blobs.pop(key, None)

    def delete_unfinished(self, older_than: timedelta) -> int:  # noqa: ARG002
        return 0

    def insert(self, key: str, data: bytes) -> None:
        """Store bytes, whatever they are."""
        with self._lock:
            self._blobs[key] = (data, datetime.now(UTC))


class _MemoryWriter(BlobWriter):
    def __init__(self, store: MemoryBlobs, key: str, limit_bytes: int) -> None:
        super().__init__(key, limit_bytes)
        self._store = store
        self._chunks: list[bytes] = []

    def _append(self, chunk: Bytes) -> None:
        self._chunks.append(bytes(chunk))

    def _publish(self) -> None:
        self._store.insert(self._key, b"".join(self._chunks))

    def abort(self) -> None:
        self._chunks.clear()
