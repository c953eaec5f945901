"""`LocalBlobs`: the embedded default, blobs as files in one folder.

    ROOT/blobs/sha256/ab/<hex>   ROOT/staging/<push id>/<hex>   ROOT/tmp/<random>   ROOT/aside/<hex>-<random>

Invariants
- A file is written under `tmp/`, forced to disk, renamed to its key, and the folder is forced to disk:
  a power cut or `kill -9` leaves the whole blob or litter in `tmp/`, never half a blob under its key.
- What is staged may be gone after a power cut, as a whole: it is sent again then. `promote` makes it last.
- The final key is created by a hard link, which fails when it exists: nothing is ever replaced there.
- A promotion makes the same calls, and forces the same folders to disk, whether or not the final key exists.
- What stands under a key and is no file (a folder, a pipe, a link to nothing) is no blob: a promotion moves it to
  `aside/`, where a person may look at it. A folder that cannot be read is an error, never an empty one.
- Memory stays constant whatever the size; a full disk is `Unavailable`, not a crash.
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
from registry.errors import Invalid
from registry.server.storage import disk
from registry.server.storage.blobs import (
    CHUNK_BYTES,
    Sink,
    Stat,
    WithoutLinks,
    absent,
    check_expectation,
    digest_of,
    fill,
    key_of,
)

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""What a file system without hard links (or with a full link count) answers."""
_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""What is answered where no file stands under a path."""


class LocalBlobs(WithoutLinks):
    """A folder of blobs, shared safely by any number of threads and processes of one machine."""

    kind = "local"

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def at(cls, url: str) -> LocalBlobs:
        """The store of a `file:///…` URL. `Invalid` (SETTING_INVALID) for one that names no folder of this machine."""
        parts = urlsplit(url)
        path = Path(unquote(parts.path))
        if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not path.is_absolute():
            raise Invalid(
                "SETTING_INVALID",
                f"REGISTRY_BLOBS or REGISTRY_SECOND_COPY: {url[:120]!r} is neither 'file:///FOLDER' nor 's3://BUCKET/PREFIX'",
            )
        return cls(path)

    def path_of(self, key: str) -> Path | None:
        digest_of(key)
        return self.root / key

    def stat(self, key: str) -> Stat | None:
        digest = digest_of(key)
        try:
            found = os.stat(self.root / key)
        except OSError as e:
            if e.errno in _NO_FILE:
                return None
            raise disk.unavailable(e) from e
        if not modes.S_ISREG(found.st_mode):
            return None
        return Stat(key, found.st_size, digest, datetime.fromtimestamp(found.st_mtime, UTC))

    def read(self, key: str, start: int, length: int) -> bytes:
        return b"".join(self.open(key, start, length))

    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        digest_of(key)
        try:
            descriptor = os.open(self.root / key, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait
        except OSError as e:
            if e.errno in _NO_FILE:
                absent(key)
            raise disk.unavailable(e) from e
        if not modes.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            absent(key)
        return _chunks(descriptor, start, 2**62 if length is None else length)

    def sink(self, key: str, *, limit_bytes: int) -> Sink:
        return disk.FileSink(self.root, key, limit_bytes)

    def put(self, key: str, chunks: Iterable[bytes], *, expect: Digest | None = None, limit_bytes: int) -> Stat:
        check_expectation(key, expect)
        return fill(self.sink(key, limit_bytes=limit_bytes), chunks)

    def promote(self, staging_key: str, digest: Digest, *, replace: bool = False) -> None:
        digest_of(staging_key)
        staged, final = self.root / staging_key, self.root / key_of(digest)
        try:
            disk.make_folder(final.parent)
            try:
                self._name(staged, final, replace=replace)
            except FileNotFoundError:
                if not final.exists():
                    absent(staging_key)
            except OSError as e:
                if e.errno not in _NO_LINKS:
                    raise
                os.rename(staged, final)
            disk.sync_folder(final.parent)
        except OSError as e:
            raise disk.unavailable(e) from e

    def _name(self, staged: Path, final: Path, *, replace: bool) -> None:
        """The final key, as another name of the staged file, by way of a spare name that goes again.

        The spare name is why a key that exists takes as long: there is a change to be forced to disk either way. It is
        also what is renamed over damaged bytes, so that nobody sees a moment without the key.
        """
        spare = self.root / "tmp" / f"{final.name[:12]}-{secrets.token_hex(8)}"
        disk.make_folder(spare.parent)
        disk.link(staged, spare)
        self._set_aside(final)
        try:
            if replace:
                os.rename(spare, final)
            else:
                os.link(spare, final)
        except FileExistsError:
            pass
        finally:
            spare.unlink(missing_ok=True)  # a rename does nothing when both are one file already
        disk.sync_folder(spare.parent)

    def _set_aside(self, path: Path) -> None:
        """What is no file makes room for one. A file stays, and so does a link to one."""
        with contextlib.suppress(FileNotFoundError):
            mode = os.lstat(path).st_mode
            if modes.S_ISREG(mode) or (modes.S_ISLNK(mode) and path.is_file()):
                return
            aside = self.root / "aside" / f"{path.name}-{secrets.token_hex(4)}"
            disk.make_folder(aside.parent)
            os.rename(path, aside)

    def delete(self, key: str) -> None:
        digest_of(key)
        path = self.root / key
        try:
            self._set_aside(path)
            path.unlink(missing_ok=True)
            if key.startswith("staging/"):
                with contextlib.suppress(OSError):  # not empty yet, or gone already
                    path.parent.rmdir()
        except OSError as e:
            raise disk.unavailable(e) from e

    def list(self, prefix: str) -> Iterator[Stat]:
        """Every blob under a prefix that ends in `/`, in the file system's order; files may come and go."""
        for folder, _, files in os.walk(self.root / prefix, onerror=_unreadable):
            for name in files:
                key = str(Path(folder, name).relative_to(self.root))
                with contextlib.suppress(FileNotFoundError, ValueError):
                    stat = self.stat(key)
                    if stat is not None:
                        yield stat

    def sweep(self, older_than: timedelta, prefix: str = "") -> int:
        """Remove files that were being written when a process died. Returns how many.

        Whose they were is not known, so with a `prefix` none goes.
        """
        gone = 0
        if prefix:
            return gone
        limit = (datetime.now(UTC) - older_than).timestamp()
        for path in (self.root / "tmp").glob("*"):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # a folder is none of ours
                try:
                    if path.lstat().st_mtime < limit:
                        path.unlink()
                        gone += 1
                except OSError as e:
                    if e.errno in (errno.ENOENT, errno.EISDIR):
                        raise
                    raise disk.unavailable(e) from e
        return gone


def _unreadable(error: OSError) -> None:
    if error.errno not in _NO_FILE:
        raise disk.unavailable(error)


def _chunks(descriptor: int, start: int, length: int) -> Iterator[bytes]:
    try:
        while length > 0:
            try:
                chunk = os.pread(descriptor, min(CHUNK_BYTES, length), start)
            except OSError as e:
                raise disk.unavailable(e) from e
            if not chunk:
                return
            yield chunk
            start += len(chunk)
            length -= len(chunk)
    finally:
        os.close(descriptor)
