"""`Cache`: blobs that this machine pulled before, by digest. Any number of processes may share one.

- A cached blob is hashed again at each use, so an edited file never becomes another adapter.
- Large blobs are hard-linked read-only; small ones are copied, because people edit them. On Windows, where a read-only
  file can be neither replaced nor deleted, all are copied.
- Files appear whole under their digest. A process waits for a large blob that another one fetches; on Windows, and of a
  small one, both fetch it.
- Above the limit the least recently used go, before them files that a killed process left half-written.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from registry.digest import Digest
from registry.errors import Invalid
from registry.filesystem import IS_POSIX, lock, user_folder

LINK_FROM_BYTES = 2**20
LOCKED_FROM_BYTES = 8 * 2**20
"""A smaller blob is fetched twice rather than locked: a lock is a file that is created and removed."""
LIMIT_BYTES = 50 * 2**30
LIMIT_SETTING = "ADAPTER_CACHE_BYTES"
LEFT_SECONDS = 24 * 3600
"""A half-written file of this age was abandoned."""
LOOK_SHARE = 50
"""The files are counted after 1/50 of the limit was added."""


class Cache:
    """Thread-safe; other processes may use the same folder."""

    def __init__(self, root: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self._added_bytes = limit_bytes  # the first added file makes it count
        self._counting = threading.Lock()

    @classmethod
    def of_user(cls) -> Cache:
        """`$XDG_CACHE_HOME/adapter-registry/blobs`, else below `~/.cache`; `ADAPTER_CACHE_BYTES` is its limit."""
        limit = os.environ.get(LIMIT_SETTING, "").strip() or str(LIMIT_BYTES)
        if not (limit.isascii() and limit.isdigit()):
            raise Invalid("SETTING_INVALID", f"{LIMIT_SETTING}: {limit[:40]!r} is not a number of bytes")
        return _shared(user_folder("cache") / "blobs", int(limit))

    def path_of(self, digest: Digest) -> Path:
        """Where this blob is, or would be."""
        return self.root / "sha256" / digest.hex[:2] / digest.hex

    def take(self, digest: Digest, size_bytes: int, target: Path) -> bool:
        """Put the blob at `target` if it is here and intact. A damaged one is deleted."""
        cached = self.path_of(digest)
        if not self.check(digest, size_bytes):
            return False
        try:
            hand_out(cached, target)
            _used(cached)
        except OSError:
            return False
        return True

    def fill(self, digest: Digest, size_bytes: int, target: Path, fetch: Callable[[Path], None]) -> bool:
        """Fetch the blob into the cache and put it at `target`; False if another process fetched it meanwhile.

        A cache that cannot be written is bypassed.
        """
        cached = self.path_of(digest)
        new = cached.with_name(f".{digest.short}-{secrets.token_hex(6)}")
        with contextlib.ExitStack() as stack:
            try:
                cached.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                if size_bytes >= LOCKED_FROM_BYTES:
                    stack.enter_context(_locked(cached.with_name(f".{digest.hex}.lock")))
            except OSError:
                fetch(target)
                return True
            try:
                if cached.exists() and self.take(digest, size_bytes, target):
                    return False
                try:
                    fetch(new)
                    if IS_POSIX:
                        os.chmod(new, 0o444)
                    os.replace(new, cached)
                except OSError:  # full, as a rule
                    fetch(target)
                    return True
                hand_out(cached, target)
            finally:
                with contextlib.suppress(OSError):
                    new.unlink(missing_ok=True)
        self._trim_if_due(size_bytes)
        return True

    def check(self, digest: Digest, size_bytes: int) -> bool | None:
        """Whether the blob is intact; None if it is not here. A damaged one is deleted."""
        cached = self.path_of(digest)
        try:
            if cached.stat().st_size == size_bytes and Digest.of_file(cached) == digest:
                return True
            cached.unlink(missing_ok=True)
            return False
        except OSError:
            return None

    def _trim_if_due(self, added_bytes: int) -> None:
        with self._counting:
            self._added_bytes += added_bytes
            if self._added_bytes * LOOK_SHARE < self.limit_bytes:
                return
            self._added_bytes = 0
        self.trim()

    def trim(self) -> int:
        """Delete abandoned files, then the least recently used down to the limit; how many bytes were freed."""
        entries, freed_bytes = [], 0
        for path in self.root.glob("sha256/*/.*"):
            with contextlib.suppress(OSError):
                stat = path.stat()
                if time.time() - stat.st_mtime > LEFT_SECONDS:
                    path.unlink()
                    freed_bytes += stat.st_size
        for path in self.root.glob("sha256/*/[0-9a-f]*"):
            with contextlib.suppress(OSError):
                stat = path.stat()
                entries.append((stat.st_atime_ns, stat.st_size, path))
        excess_bytes = sum(size for _, size, _ in entries) - self.limit_bytes
        for _, size, path in sorted(entries):
            if excess_bytes <= 0:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                freed_bytes += size
                excess_bytes -= size
        return freed_bytes


@functools.lru_cache(maxsize=8)
def _shared(root: Path, limit_bytes: int) -> Cache:
    """One object per folder, so that many pulls of one process count its files once."""
    return Cache(root, limit_bytes=limit_bytes)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock one blob, and remove the lock file at the end. A waiting process then has the removed file's lock and finds
    the blob; at worst two fetch it, and the later one replaces the same bytes."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        lock(descriptor, wait=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _used(cached: Path) -> None:
    """Set the access time; file systems may not do that by themselves."""
    with contextlib.suppress(OSError):  # another user's file
        os.utime(cached, ns=(time.time_ns(), cached.stat().st_mtime_ns))


def hand_out(cached: Path, target: Path) -> None:
    """Hard-link a large file if possible, else copy. A failed copy is removed."""
    if cached.stat().st_size >= LINK_FROM_BYTES and IS_POSIX:
        with contextlib.suppress(OSError):
            os.link(cached, target)
            return
    with contextlib.suppress(FileNotFoundError):
        target.unlink()
    try:
        shutil.copyfile(cached, target)
        with open(target, "rb+") as file:
            os.fsync(file.fileno())
    except OSError as e:
        with contextlib.suppress(OSError):
            target.unlink()
        raise OSError(e.errno, e.strerror, str(target)) from e  # it would name the file that was read
