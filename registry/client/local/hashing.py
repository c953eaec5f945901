"""Hashes files; those of weights early, while the command's modules are imported, because imports keep one core busy.

The command line calls `begin` with the typed folder before it imports the command; `folder` then calls `taken`.

- Only the standard library: this module is imported first.
- A hash counts only for the same file: inode, size and times are equal before, after, and when it is taken.
- Each file is hashed once, and errors are left to `folder`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from registry.versions.files import CHUNK_BYTES, WEIGHTS_ENDINGS

EARLY_CHUNK_BYTES = 8 * 2**20
"""Large, because each chunk needs the interpreter twice, and imports hold it for milliseconds."""
AT_ONCE = 4
"""As many as adapters are pushed at a time. Each has a chunk in memory."""
FILES_LIMIT = 10_000

Known = tuple[str, int]
"""Hex digits of the SHA-256, and how many bytes it is of."""


def _nothing(_bytes: int) -> None:
    return None


class _Early:
    """One file, hashed by the thread that claims it first."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._claim = threading.Lock()
        self._done = threading.Event()
        self._seen: tuple[int, ...] = ()
        self._known: Known | None = None

    def run(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        try:
            with open(self.path, "rb", buffering=0) as file:
                identity = _identity(os.fstat(file.fileno()))
                hashed = _read(file.fileno(), _nothing, EARLY_CHUNK_BYTES)
                if identity == _identity(os.fstat(file.fileno())):
                    self._seen, self._known = identity, hashed
        except OSError:
            return
        finally:
            self._done.set()

    def take(self) -> Known | None:
        if self._claim.acquire(blocking=False):
            return None
        self._done.wait()
        try:
            return self._known if self._seen == _identity(os.stat(self.path, follow_symlinks=False)) else None
        except OSError:
            return None


_begun: dict[str, _Early] = {}


def begin(folder: str, *, depth: int) -> None:
    """Hash the weights in `folder` (`depth` 0) or in its folders (1), on other cores."""
    files = [_Early(path) for path in _weights(folder, depth)]
    _begun.update((early.path, early) for early in files)
    waiting = iter(files)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                early = next(waiting, None)
            if early is None:
                return
            early.run()

    for _ in range(min(len(files), AT_ONCE, max(1, (os.cpu_count() or 1) - 1))):
        threading.Thread(target=work, daemon=True, name="hashing").start()


def taken(path: Path) -> Known | None:
    """The early hash of this file if the file is still the same. Given once."""
    early = _begun.pop(str(path), None)
    return early.take() if early else None


def hash_of(path: Path, on_bytes: Callable[[int], None] = _nothing) -> Known:
    """Hash a file now. `on_bytes` is called with each step; `OSError`."""
    with open(path, "rb", buffering=0) as file:
        return _read(file.fileno(), on_bytes, CHUNK_BYTES)


def _weights(folder: str, depth: int) -> Iterator[str]:
    """Sorted, as they will be taken."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: a name with U+0000
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)[:FILES_LIMIT]:
            if depth and entry.is_dir():
                yield from _weights(entry.path, depth - 1)
            elif not depth and entry.name.endswith(WEIGHTS_ENDINGS) and entry.is_file(follow_symlinks=False):
                yield str(Path(entry.path))


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(descriptor: int, on_bytes: Callable[[int], None], chunk_bytes: int) -> Known:
    hasher, size = hashlib.sha256(), 0
    buffer = bytearray(max(1, min(chunk_bytes, os.fstat(descriptor).st_size)))
    view = memoryview(buffer)
    while count := os.readv(descriptor, [buffer]):
        hasher.update(view[:count])
        size += count
        on_bytes(count)
    return hasher.hexdigest(), size
