"""`Destination`: a folder that is replaced as a whole, in one step where the system can. A failure leaves the old one.

Only an empty folder, or one that a pull made (it has its note) and no one added files to, is replaced: a mistyped DEST
never costs a file. The next write of a folder removes what a killed process left, after `LEFT_SECONDS`.
"""

import contextlib
import ctypes
import errno
import functools
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from registry.errors import Invalid
from registry.filesystem import IS_POSIX, lock, sync_folder
from registry.versions.files import NOTE, PARTIAL_NOTE, kind_of

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
LEFT_SECONDS = 3600
NAMES_SECONDS = 60
"""How long the names in a folder count: many adapters go into one, and what was left behind is older."""
_NEW_SUFFIX = re.compile(r"(\.[0-9a-f]{12})+(\.old)?")


class Destination:
    """A context: gives a new empty folder, and moves it to `path` on a clean end."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(path))
        self._stem = os.fsencode(self.path.name)[:200].decode(errors="ignore")
        self._new = self.path.with_name(f".{self._stem}.{secrets.token_hex(6)}")
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Path:
        require_free(self.path)
        try:
            self._new.mkdir(parents=True)
        except OSError as e:
            raise Invalid("FOLDER_INVALID", f"{str(self.path)!r} cannot be written: {e.strerror}") from e
        self._held.enter_context(_held(self._new))
        self._clear()
        return self._new

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                require_free(self.path)
                sync_folder(self._new)
                self._replace()
                sync_folder(self.path.parent)
        finally:
            shutil.rmtree(self._new, ignore_errors=True)
            self._held.close()

    def _clear(self) -> None:
        """Remove abandoned new folders of this destination, also those of a merge's child process."""
        for name in _hidden_names(self.path.parent, int(time.monotonic() / NAMES_SECONDS)):
            if not self._is_ours(name):
                continue
            path = self.path.with_name(name)
            with contextlib.suppress(OSError):
                status = path.lstat()
                if stat.S_ISDIR(status.st_mode) and time.time() - status.st_mtime > LEFT_SECONDS:
                    with _held(path) as free:
                        if free:
                            shutil.rmtree(path, ignore_errors=True)

    def _is_ours(self, name: str) -> bool:
        """Whether a new folder of this destination may have this name: dots, the stem, and `_NEW_SUFFIX`."""
        dots = len(name) - len(name.lstrip("."))
        return any(
            name.startswith(self._stem, count) and _NEW_SUFFIX.fullmatch(name, count + len(self._stem))
            for count in range(1, dots + 1)
        )

    def _replace(self) -> None:
        try:
            os.rename(self._new, self.path)  # nothing there, or an empty folder
            return
        except OSError as e:
            if e.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        if not _exchange(self._new, self.path):
            old = self._new.with_name(f"{self._new.name}.old")
            os.rename(self.path, old)
            os.rename(self._new, self.path)
            shutil.rmtree(old, ignore_errors=True)


def require_free(path: Path) -> None:
    """`Invalid` (FOLDER_INVALID) unless a pull may make or replace this folder."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        raise Invalid("FOLDER_INVALID", f"{str(path)!r} exists and is not a folder")
    names = set(os.listdir(path))
    strange = sorted(name for name in names if name not in (NOTE, PARTIAL_NOTE) and kind_of(name) is None)
    if names and (names.isdisjoint((NOTE, PARTIAL_NOTE)) or strange):
        problem = f"holds {strange[0]!r}, which" if strange else f"has no {NOTE}, so it"
        raise Invalid(
            "FOLDER_INVALID",
            f"{str(path)!r} {problem} was not created by a pull; it is left untouched",
            next_step="name a folder that is empty or does not exist",
        )


@functools.lru_cache(maxsize=8)
def _hidden_names(folder: Path, _minute: int) -> tuple[str, ...]:
    """The names in a folder that begin with a dot, as they were in this minute; none if it cannot be read."""
    with contextlib.suppress(OSError):
        return tuple(name for name in os.listdir(folder) if name.startswith("."))
    return ()


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Lock a folder while it is written. False if another process has it, or without locks."""
    if not IS_POSIX:
        yield False
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        yield lock(descriptor, wait=False)
    finally:
        os.close(descriptor)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step (Linux's renameat2); False if that is not supported."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # macOS has no such call, Windows no such library
        libc = ctypes.CDLL(None, use_errno=True)
        swapped: int = libc.renameat2(
            _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), ctypes.c_uint(_RENAME_EXCHANGE)
        )
        return swapped == 0
    return False
