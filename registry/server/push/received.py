"""Keeps the bytes of small blobs from their arrival to the commit of their push, which then need not read them again.

Nothing depends on this. Another process may commit, or newer bytes displaced these: then the commit reads the store.
"""

import threading
from collections import OrderedDict

from registry.server.storage.blobs import BlobWriter, Bytes, Stat

BLOB_LIMIT_BYTES = 8 * 2**20
"""Larger blobs are not kept."""
LIMIT_BYTES = 256 * 2**20
"""All bytes that are kept by a process: two groups of 100 adapters of 1 MB, as one is sent while the other commits."""
ENTRY_BYTES = 1024
"""What a blob counts beyond its bytes: a client may send any number of tiny ones, and never commit."""


class ReceivedBlobs:
    """The blobs that arrived last, by their staging keys. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blobs: OrderedDict[str, bytearray] = OrderedDict()
        self._size_bytes = 0

    def keeping(self, staging_key: str, size_bytes: int, writer: BlobWriter) -> BlobWriter:
        """A writer whose bytes are kept once `writer` has verified and stored them, if they are few; else `writer`."""
        return _BufferingWriter(self, staging_key, writer) if size_bytes <= BLOB_LIMIT_BYTES else writer

    def add(self, staging_key: str, data: bytearray) -> None:
        """Keep the bytes of a blob, and forget the oldest beyond the limit."""
        with self._lock:
            self._forget(staging_key)
            self._size_bytes += ENTRY_BYTES + len(data)
            self._blobs[staging_key] = data
            while self._size_bytes > LIMIT_BYTES:
                self._forget(next(iter(self._blobs)))

    def take(self, staging_key: str) -> bytes | None:
        """The bytes of a blob, once; None if they are not kept."""
        with self._lock:
            data = self._forget(staging_key)
        return None if data is None else bytes(data)

    def _forget(self, staging_key: str) -> bytearray | None:
        data = self._blobs.pop(staging_key, None)
        if data is not None:
            self._size_bytes -= ENTRY_BYTES + len(data)
        return data


class _BufferingWriter:
    """Writes a blob and keeps its bytes."""

    def __init__(self, received: ReceivedBlobs, staging_key: str, writer: BlobWriter) -> None:
        self._received, self._staging_key, self._writer = received, staging_key, writer
        self._data = bytearray()
        self.abort = writer.abort

    def write(self, chunk: Bytes) -> None:
        self._writer.write(chunk)
        self._data += chunk

    def finish(self) -> Stat:
        """Write the blob under its key."""
        stat = self._writer.finish()
        self._received.add(self._staging_key, self._data)
        return stat


RECEIVED = ReceivedBlobs()
"""Those of this process. A staging key is random, so databases need not be told apart."""
