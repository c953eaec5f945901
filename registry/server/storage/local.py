"""`LocalBlobs`: the default store, blobs as files in one folder.

    ROOT/blobs/sha256/ab/<hex>   ROOT/staging/9f/<push id>.<hex>   ROOT/tmp/<random>   ROOT/aside/<hex>-<random>

- A path is its key. Only staged files share folders, by the end of their push's id: to make and remove a folder for
  each push takes longer than all other names of its blobs together.
- A file is written under `tmp/`, forced to disk and renamed to its key; then the folder is forced to disk. A power cut
  or `kill -9` leaves the whole blob, or a leftover in `tmp/`: never half a blob under its key.
- A staged blob may be missing after a power cut, as a whole: it is sent again. A commit makes all of its group durable
  with one `sync`: the first folder takes the file system's journal along, and the others have little left to write.
- The final key is created by a hard link, which fails if it exists, so nothing there is ever overwritten.
- A promotion makes the same calls whether or not the final key exists, and `sync` forces the same folders to disk.
- Anything but a file under a key (a folder, a pipe, a broken link) is no blob: a promotion moves it to `aside/`, where
  a person can look at it. A folder that cannot be read is an error, never an empty one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat as modes
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from registry.digest import Digest
from registry.errors import Unavailable
from registry.filesystem import sync_folder
from registry.server.storage import blobs, signed_links
from registry.versions.files import CHUNK_BYTES

WRITE_BACK_BYTES = 4 * 2**20
LINK_ATTEMPTS = 100
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""Errors of a file system without hard links, or with a full link count."""
_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""Errors for a path where no file is."""
_STAGING = "staging/"


class LocalBlobs(blobs.BlobStore):
    """A folder of blobs. Any number of threads and processes of one machine may share it."""

    kind = "local"
    link_limit_seconds = signed_links.LIMIT_SECONDS

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder = f"{root.absolute()}/"

    def _path(self, key: str) -> str:
        """The path of a key as text: a `Path` takes longer to make than its file to be looked up."""
        if not key.startswith(_STAGING):
            return self._folder + key
        push_id, _, rest = key.removeprefix(_STAGING).partition("/")
        return f"{self._folder}{_STAGING}{push_id[-2:]}/{push_id}.{rest.replace('/', '.')}"

    def _key(self, path: str) -> str:
        """The key of a path. The path of a file that is not the store's is no key."""
        key = path.removeprefix(self._folder)
        return _STAGING + os.path.basename(key).replace(".", "/") if key.startswith(_STAGING) else key

    @classmethod
    def from_url(cls, url: str) -> LocalBlobs:
        """Return the store of a `file:///…` URL. `Invalid` (SETTING_INVALID) if it names no folder of this machine."""
        parts = urlsplit(url)
        path = Path(unquote(parts.path))
        if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not path.is_absolute():
            raise blobs.invalid_store(url)
        return cls(path)

    def local_path(self, key: str) -> Path | None:
        """Return the path of the key's file."""
        blobs.digest_of(key)
        return Path(self._path(key))

    def stat(self, key: str) -> blobs.Stat | None:
        """Look a file up. Its digest was verified before it got its name."""
        digest = blobs.digest_of(key)
        try:
            status = os.stat(self._path(key))
        except OSError as e:
            if e.errno in _NO_FILE:
                return None
            raise _unavailable(e) from e
        if not modes.S_ISREG(status.st_mode):
            return None
        return blobs.Stat(key, status.st_size, digest, datetime.fromtimestamp(status.st_mtime, UTC))

    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield a range of the file in chunks. A reader keeps its bytes if the file is deleted meanwhile."""
        return self._open(key, start, blobs.WHOLE_BYTES if length is None else length, CHUNK_BYTES)

    def read(self, key: str, start: int, length: int) -> bytes:
        """Return the bytes of a small range: one piece, which need not be copied."""
        return b"".join(self._open(key, start, length, length))

    def _open(self, key: str, start: int, length: int, chunk_bytes: int) -> Iterator[bytes]:
        blobs.digest_of(key)
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would block
        except OSError as e:
            if e.errno in _NO_FILE:
                blobs.raise_unknown(key)
            raise _unavailable(e) from e
        if not modes.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            blobs.raise_unknown(key)
        return _read_chunks(descriptor, start, length, chunk_bytes)

    def open_writer(self, key: str, *, limit_bytes: int, is_hashed: bool = False) -> blobs.BlobWriter:
        """Begin to write a file under `tmp/`."""
        verifier = blobs.DigestVerifier(key, limit_bytes, is_hashed=is_hashed)
        return FileWriter(self._folder, key, self._path(key), verifier)

    def copy(self, key: str, target: str, size_bytes: int) -> None:
        """Link a file to another staging key. Where it cannot be linked, and to final keys, it is written."""
        blobs.require_digest(target, blobs.digest_of(key))
        if not (target.startswith(_STAGING) and self._link_staged(self._path(key), self._path(target))):
            super().copy(key, target, size_bytes)

    def promote(self, staging_key: str, digest: Digest, *, replace: bool = False) -> None:
        """Link the staged file to its final key."""
        blobs.digest_of(staging_key)
        staged, final = self._path(staging_key), self._path(blobs.key_of(digest))
        with _translate_errors():
            _make_folder(os.path.dirname(final))
            try:
                self._link_final(staged, final, replace=replace)
            except FileNotFoundError:
                if not os.path.exists(final):
                    blobs.raise_unknown(staging_key)
            except OSError as e:
                if e.errno not in _NO_LINKS:
                    raise
                os.rename(staged, final)

    def sync(self, digests: Iterable[Digest]) -> None:
        """Force the folders of these blobs to disk, and that of the temporary names that led to them, each once."""
        folders = {os.path.dirname(self._path(blobs.key_of(digest))) for digest in digests}
        with _translate_errors():
            for folder in (self._path("tmp"), *sorted(folders)) if folders else ():
                _make_folder(folder)
                sync_folder(folder)

    def _link_staged(self, staged: str, target: str) -> bool:
        """Whether the file has this name now."""
        with _translate_errors():
            _make_folder(os.path.dirname(target), durable=False)
            try:
                _link(staged, target)
            except FileExistsError:
                return True
            except OSError as e:
                if e.errno not in _NO_LINKS | {errno.ENOENT}:  # the source may be gone
                    raise
                return False
        return True

    def _link_final(self, staged: str, final: str, *, replace: bool) -> None:
        """Make the final key another name of the staged file, through a temporary name.

        Because of the temporary name a promotion takes as long if the key exists: a change is forced to disk either
        way. It is also what is renamed over damaged bytes, so that the key never disappears.
        """
        temporary = self._path(f"tmp/{os.path.basename(final)[:12]}-{secrets.token_hex(8)}")
        _make_folder(os.path.dirname(temporary))
        _link(staged, temporary)
        self._move_aside(final)
        try:
            if replace:
                os.rename(temporary, final)
            else:
                os.link(temporary, final)
        except FileExistsError:
            pass
        finally:
            with contextlib.suppress(FileNotFoundError):  # a rename does nothing if both are the same file already
                os.unlink(temporary)

    def _move_aside(self, path: str) -> None:
        """Move what is neither a file nor a link to one out of the way."""
        with contextlib.suppress(FileNotFoundError):
            mode = os.lstat(path).st_mode
            if modes.S_ISREG(mode) or (modes.S_ISLNK(mode) and os.path.isfile(path)):
                return
            aside = self._path(f"aside/{os.path.basename(path)}-{secrets.token_hex(4)}")
            _make_folder(os.path.dirname(aside))
            os.rename(path, aside)

    def presign_read(
        self, key: str, size_bytes: int, *, seconds: int, owner: str = "", file_name: str = "", method: str = "GET"
    ) -> str | None:
        """Sign a link to this server, if it handles links."""
        blobs.digest_of(key)
        return self.links.sign(method, key, size_bytes, seconds=seconds, owner=owner) if self.links else None

    def delete(self, key: str) -> None:
        """Delete a file."""
        blobs.digest_of(key)
        path = self._path(key)
        with _translate_errors():
            self._move_aside(path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def list(self, prefix: str) -> Iterator[blobs.Stat]:
        """Yield every key under a prefix that ends in `/`, in the file system's order. Files may come and go."""
        of_push = prefix.startswith(_STAGING) and prefix != _STAGING
        top = os.path.dirname(self._path(prefix)) if of_push else self._folder + prefix
        for folder, _, files in os.walk(top, onerror=_raise_unreadable):
            for name in files:
                key = self._key(os.path.join(folder, name))
                with contextlib.suppress(FileNotFoundError, ValueError):
                    stat = self.stat(key) if key.startswith(prefix) else None
                    if stat is not None:
                        yield stat

    def delete_unfinished(self, older_than: timedelta, prefix: str = "") -> int:
        """Delete the files that a process was writing when it died. None with a `prefix`, which they do not have.

        So are files that an earlier release staged, in a folder for each push: no key leads to them any more.
        """
        count = 0
        if prefix:
            return count
        limit, staging = (datetime.now(UTC) - older_than).timestamp(), self.root / "staging"
        for path in (*(self.root / "tmp").glob("*"), *staging.glob("???*/**/*")):
            with _translate_errors(), contextlib.suppress(FileNotFoundError, IsADirectoryError):  # no writer's folder
                if path.lstat().st_mtime < limit:
                    path.unlink()
                    count += 1
        for folder in sorted(staging.glob("???*/**"), reverse=True):
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
        return count


class FileWriter:
    """Writes one file under `tmp/` and renames it to its key in `finish`."""

    def __init__(self, root: str, key: str, path: str, verifier: blobs.DigestVerifier) -> None:
        self._verifier = verifier
        self._key, self._final = key, path
        self._flushed_bytes = 0
        self._temporary = os.path.join(root, "tmp", f"{self._verifier.digest.short}-{secrets.token_hex(8)}")
        with _translate_errors():
            _make_folder(os.path.dirname(self._temporary))
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self._temporary, flags, 0o600)

    def write(self, chunk: blobs.Bytes) -> None:
        """Write a chunk."""
        self._verifier.update(chunk)
        view = memoryview(chunk)
        with _translate_errors():
            while view:
                view = view[os.write(self._descriptor, view) :]
            self._start_write_back()

    def _start_write_back(self) -> None:
        """Let the disk begin while bytes still arrive, so that the final fsync has little left to wait for."""
        dirty_bytes = self._verifier.size_bytes - self._flushed_bytes
        if dirty_bytes >= WRITE_BACK_BYTES and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, self._flushed_bytes, dirty_bytes, os.POSIX_FADV_DONTNEED)
            self._flushed_bytes += dirty_bytes

    def finish(self) -> blobs.Stat:
        """Verify the digest and move the file to its key."""
        self._verifier.verify()
        folder, durable = os.path.dirname(self._final), not self._key.startswith(_STAGING)
        with _translate_errors():
            os.fsync(self._descriptor)
            self._close()
            _make_folder(folder, durable=durable)
            os.rename(self._temporary, self._final)
            if durable:
                sync_folder(folder)
        return blobs.Stat(self._key, self._verifier.size_bytes, self._verifier.digest, datetime.now(UTC))

    def abort(self) -> None:
        """Delete what was written."""
        self._close()
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _read_chunks(descriptor: int, start: int, length: int, chunk_bytes: int) -> Iterator[bytes]:
    try:
        while length > 0:
            with _translate_errors():
                chunk = os.pread(descriptor, min(chunk_bytes, length), start)
            if not chunk:
                return
            yield chunk
            start += len(chunk)
            length -= len(chunk)
    finally:
        os.close(descriptor)


def _link(source: str, target: str) -> None:
    """Link a file. The kernel may miss a file that is being replaced at this moment, so try again while it exists."""
    for _ in range(LINK_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):
            return os.link(source, target)
        if not os.path.exists(source):
            break
    raise FileNotFoundError(errno.ENOENT, "there is no file to link", source)


def _make_folder(folder: str, *, durable: bool = True) -> None:
    """Make a folder and its missing parents. With `durable` each entry is forced to disk."""
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    if parent != folder:
        _make_folder(parent, durable=durable)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, mode=0o700)
        if durable:
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
