"""The disk under `LocalBlobs`: files that come whole or not at all, their names, and what is forced to last.

Invariants
- A file is written under `tmp/`, forced to disk, then renamed to its key; what is staged need not outlast a power cut.
- What the operating system refuses is `Unavailable`: a full disk, a folder without rights.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

from registry.errors import Unavailable
from registry.server.storage.blobs import Bytes, Meter, Stat

WRITE_BACK_BYTES = 4 * 2**20
LINK_TRIES = 100


class FileSink:
    """One file on its way in, under `tmp/` until `finish`."""

    def __init__(self, root: Path, key: str, limit_bytes: int) -> None:
        self._meter = Meter(key, limit_bytes)
        self._root, self._key = root, key
        self._begun = 0
        self._temporary = root / "tmp" / f"{self._meter.digest.short}-{secrets.token_hex(8)}"
        try:
            make_folder(self._temporary.parent)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self._temporary, flags, 0o600)
        except OSError as e:
            raise unavailable(e) from e

    def write(self, chunk: Bytes) -> None:
        self._meter.add(chunk)
        view = memoryview(chunk)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
            self._begin_writing_back()
        except OSError as e:
            raise unavailable(e) from e

    def _begin_writing_back(self) -> None:
        """Let the disk begin while bytes still come: the fsync at the end then has little left to wait for."""
        waiting = self._meter.size_bytes - self._begun
        if waiting >= WRITE_BACK_BYTES and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, self._begun, waiting, os.POSIX_FADV_DONTNEED)
            self._begun += waiting

    def finish(self) -> Stat:
        self._meter.check()
        final = self._root / self._key
        try:
            os.fsync(self._descriptor)
            self._close()
            lasting = not self._key.startswith("staging/")
            make_folder(final.parent, lasting=lasting)
            try:
                os.rename(self._temporary, final)
            except FileNotFoundError:  # a racing delete took the empty staging folder away
                make_folder(final.parent, lasting=lasting)
                os.rename(self._temporary, final)
            if lasting:
                sync_folder(final.parent)
        except OSError as e:
            raise unavailable(e) from e
        return Stat(self._key, self._meter.size_bytes, self._meter.digest, datetime.now(UTC))

    def abort(self) -> None:
        self._close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def link(source: Path, target: Path) -> None:
    """Another name. A file that is replaced in this very moment is not there for the kernel; the new one is."""
    for _ in range(LINK_TRIES):
        with contextlib.suppress(FileNotFoundError):
            return os.link(source, target)
        if not source.exists():
            break
    raise FileNotFoundError(errno.ENOENT, "it is not there to be linked", str(source))


def make_folder(folder: Path, *, lasting: bool = True) -> None:
    """The folder and its missing parents, each entry forced to disk in the folder above it if it is to last."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent, lasting=lasting)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        if lasting:
            sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unavailable(error: OSError) -> Unavailable:
    return Unavailable(
        "STORE_UNAVAILABLE",
        f"the blob folder cannot be used now: {error.strerror or error}",
        next_step="look at the disk of the registry",
        retry_after_seconds=30,
    )
