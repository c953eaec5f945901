"""`LocalBlobs`: the default store, blobs as files in one folder.

    ROOT/blobs/sha256/ab/<hex>   ROOT/tmp/<random>   ROOT/aside/<hex>-<random>

- A path is its key. All bytes come through this server, so nothing is ever under `staging/`.
- A file is written under `tmp/`, forced to disk and renamed to its key; then the folder is forced to disk. A power cut
  or `kill -9` leaves the whole blob, or a leftover in `tmp/`: never half a blob under its key.
- A write makes the same calls whether or not the key exists.
- Anything but a file under a key (a folder, a pipe, a broken link) is no blob: a write moves it to `aside/`, where a
  person can look at it. A folder that cannot be read is an error, never an empty one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat as modes
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from registry.errors import Unavailable
from registry.filesystem import sync_folder
from registry.server.storage import blobs, signed_links
from registry.versions.files import CHUNK_BYTES

WRITE_BACK_BYTES = 4 * 2**20
_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""Errors for a path where no file is."""


class LocalBlobs(blobs.BlobStore):
    """A folder of blobs. Any number of threads and processes of one machine may share it."""

    kind = "local"
    link_limit_seconds = signed_links.LIMIT_SECONDS

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder = f"{root.absolute()}/"

    @classmethod
    def from_url(cls, url: str) -> LocalBlobs:
        """Return the store of a `file:///…` URL. `Invalid` (SETTING_INVALID) if it names no folder of this machine."""
        parts = urlsplit(url)
        path = Path(unquote(parts.path))
        if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not path.is_absolute():
            raise blobs.invalid_store(url)
        return cls(path)

    def local_path(self, key: str) -> Path:
        """Return where the file of a key is, or would be."""
        return Path(self._path(key))

    def _path(self, key: str) -> str:
        """The path as text: a `Path` takes longer to make than its file to be looked up."""
        blobs.digest_of(key)
        return self._folder + key

    def stat(self, key: str) -> blobs.Stat | None:
        """Look a file up."""
        try:
            status = os.stat(self._path(key))
        except OSError as e:
            if e.errno in _NO_FILE:
                return None
            raise _unavailable(e) from e
        if not modes.S_ISREG(status.st_mode):
            return None
        return blobs.Stat(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))

    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield a range of the file in chunks. A reader keeps its bytes if the file is deleted meanwhile."""
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would block
        except OSError as e:
            if e.errno in _NO_FILE:
                blobs.raise_unknown(key)
            raise _unavailable(e) from e
        if not modes.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            blobs.raise_unknown(key)
        return _read_chunks(descriptor, start, blobs.WHOLE_BYTES if length is None else length)

    def list(self, prefix: str) -> Iterator[blobs.Stat]:
        """Yield every key under a prefix that ends in `/`, in the file system's order. Files may come and go."""
        for folder, _, files in os.walk(self._folder + prefix, onerror=_raise_unreadable):
            for name in files:
                with contextlib.suppress(ValueError):  # a file of another program
                    stat = self.stat(os.path.join(folder, name).removeprefix(self._folder))
                    if stat is not None:
                        yield stat

    def open_writer(self, key: str, *, limit_bytes: int) -> blobs.BlobWriter:
        """Begin to write a file under `tmp/`."""
        return FileWriter(self, key, limit_bytes)

    def move_aside(self, path: str) -> None:
        """Move what is neither a file nor a link to one out of the way."""
        with contextlib.suppress(FileNotFoundError):
            mode = os.lstat(path).st_mode
            if modes.S_ISREG(mode) or (modes.S_ISLNK(mode) and os.path.isfile(path)):
                return
            aside = f"{self._folder}aside/{os.path.basename(path)}-{secrets.token_hex(4)}"
            _make_folder(os.path.dirname(aside))
            os.rename(path, aside)

    def delete(self, key: str) -> None:
        """Delete a file."""
        path = self._path(key)
        with _translate_errors():
            self.move_aside(path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def delete_unfinished(self, older_than: timedelta) -> int:
        """Delete the files that a process was writing when it died."""
        count = 0
        limit = (datetime.now(UTC) - older_than).timestamp()
        for path in (self.root / "tmp").glob("*"):
            with _translate_errors(), contextlib.suppress(FileNotFoundError, IsADirectoryError):  # no writer's folder
                if path.lstat().st_mtime < limit:
                    path.unlink()
                    count += 1
        return count

    def presign_read(
        self, key: str, size_bytes: int, *, seconds: int, owner: str = "", file_name: str = "", method: str = "GET"
    ) -> str | None:
        """Sign a link to this server, if it handles links."""
        blobs.digest_of(key)
        return self.links.sign(method, key, size_bytes, seconds=seconds, owner=owner) if self.links else None


class FileWriter(blobs.BlobWriter):
    """Writes one file under `tmp/` and moves it to its key."""

    def __init__(self, store: LocalBlobs, key: str, limit_bytes: int) -> None:
        super().__init__(key, limit_bytes)
        self._store, self._final = store, str(store.local_path(key))
        self._written_bytes = self._flushed_bytes = 0
        self._temporary = os.path.join(store.root, "tmp", f"{self._digest.short}-{secrets.token_hex(8)}")
        with _translate_errors():
            _make_folder(os.path.dirname(self._temporary))
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self._temporary, flags, 0o600)

    def _append(self, chunk: blobs.Bytes) -> None:
        view = memoryview(chunk)
        with _translate_errors():
            while view:
                count = os.write(self._descriptor, view)
                view = view[count:]
                self._written_bytes += count
            self._begin_write_back()

    def _begin_write_back(self) -> None:
        """Let the disk begin while bytes still arrive, so that the final fsync has little left to wait for."""
        dirty_bytes = self._written_bytes - self._flushed_bytes
        if dirty_bytes >= WRITE_BACK_BYTES and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, self._flushed_bytes, dirty_bytes, os.POSIX_FADV_DONTNEED)
            self._flushed_bytes += dirty_bytes

    def _publish(self) -> None:
        folder = os.path.dirname(self._final)
        with _translate_errors():
            os.fsync(self._descriptor)
            self._close()
            _make_folder(folder)
            self._store.move_aside(self._final)
            os.rename(self._temporary, self._final)
            sync_folder(folder)

    def abort(self) -> None:
        """Delete what was written."""
        self._close()
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _read_chunks(descriptor: int, start: int, length: int) -> Iterator[bytes]:
    try:
        while length > 0:
            with _translate_errors():
                chunk = os.pread(descriptor, min(CHUNK_BYTES, length), start)
            if not chunk:
                return
            yield chunk
            start += len(chunk)
            length -= len(chunk)
    finally:
        os.close(descriptor)


def _make_folder(folder: str) -> None:
    """Make a folder and its missing parents. Each entry is forced to disk."""
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    if parent != folder:
        _make_folder(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, mode=0o700)
        sync_folder(parent)


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    """Raise what the operating system refuses as `Unavailable`."""
    try:
        yield
    except OSError as e:
        raise _unavailable(e) from e


def _raise_unreadable(error: OSError) -> None:
    if error.errno not in _NO_FILE:
        raise _unavailable(error)


def _unavailable(error: OSError) -> Unavailable:
    return Unavailable(
        "STORE_UNAVAILABLE",
        f"cannot use the blob folder: {error.strerror or error}",
        next_step="check the disk of the registry",
        retry_after_seconds=30,
    )
