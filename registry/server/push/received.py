"""Keeps what arrived for a push until its commit: the bytes of small blobs, or which file this process wrote.

Nothing depends on this. Another process may commit, or newer blobs displaced these: then the commit reads the store,
and hashes what it reads.
"""

import os
import threading
from collections import OrderedDict
from pathlib import Path

from registry.server.storage.blobs import BlobWriter, Bytes, Stat

BLOB_LIMIT_BYTES = 8 * 2**20
"""Larger blobs are not kept."""
LIMIT_BYTES = 64 * 2**20
"""All bytes that are kept by a process."""
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
        return _KeepingWriter(self, staging_key, writer) if size_bytes <= BLOB_LIMIT_BYTES else writer

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


class _KeepingWriter:
    """Writes a blob and keeps its bytes."""

    def __init__(self, received: ReceivedBlobs, staging_key: str, writer: BlobWriter) -> None:
        self._received, self._staging_key, self._writer = received, staging_key, writer
        self._data = bytearray()
        self.abort = writer.abort

    def write(self, chunk: Bytes) -> None:
        """Write a chunk."""
        self._writer.write(chunk)
        self._data += chunk

    def finish(self) -> Stat:
        """Write the blob under its key."""
        stat = self._writer.finish()
        self._received.add(self._staging_key, self._data)
        return stat


class ReceivedFiles:
    """The files that this process has hashed and written last, as they were then. Thread-safe."""

    FILES_LIMIT = 4096

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[Path, tuple[int, int, int]] = OrderedDict()

    def noting(self, path: Path, writer: BlobWriter) -> BlobWriter:
        """A writer that notes the file at `path` once `writer` has verified and written it."""
        return _NotingWriter(self, path, writer)

    def add(self, path: Path) -> None:
        """Note a file as it is now, and forget the oldest beyond the limit."""
        try:
            identity = _identity(os.stat(path))
        except OSError:  # the commit, or `gc`, was faster
            return
        with self._lock:
            self._files[path] = identity
            if len(self._files) > self.FILES_LIMIT:
                self._files.popitem(last=False)

    def read(self, path: Path) -> bytes | None:
        """The bytes of a file, once, if it is small and no one wrote to it since; else None."""
        with self._lock:
            identity = self._files.pop(path, None)
        if identity is None or identity[1] > BLOB_LIMIT_BYTES:
            return None
        try:
            with open(path, "rb", buffering=0) as file:
                data = file.readall()
                return data if _identity(os.fstat(file.fileno())) == identity and len(data) == identity[1] else None
        except OSError:
            return None


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


class _NotingWriter:
    """Writes a blob and notes its file."""

    def __init__(self, received: ReceivedFiles, path: Path, writer: BlobWriter) -> None:
        self._received, self._path, self._writer = received, path, writer
        self.write, self.abort = writer.write, writer.abort

    def finish(self) -> Stat:
        """Write the blob under its key."""
        stat = self._writer.finish()
        self._received.add(self._path)
        return stat


RECEIVED_FILES = ReceivedFiles()
RECEIVED = ReceivedBlobs()
"""Those of this process. A staging key is random, so databases need not be told apart."""
