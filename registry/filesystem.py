"""The file system: files that survive a power cut, and the folders of a user (XDG Base Directory Specification).

What Windows lacks has its fallback here: no file is locked, a folder's entries are not forced to disk, and files are
read and written at an offset under one lock.
"""

import contextlib
import os
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows
    HAS_LOCKS = False
else:
    HAS_LOCKS = True

IS_POSIX = hasattr(os, "O_DIRECTORY")
"""Whether a folder can be opened, and a read-only file replaced and deleted. Not on Windows."""
NEW_FILE = os.O_CREAT | os.O_EXCL | sum(getattr(os, flag, 0) for flag in ("O_CLOEXEC", "O_NOFOLLOW", "O_BINARY"))
"""Flags that create a file of bytes, which no child process inherits."""
_OFFSETS = threading.Lock()
_USER_FOLDERS = {"config": "~/.config", "data": "~/.local/share", "cache": "~/.cache"}


def replace_file(path: Path, data: bytes, *, mode: int = 0o644, keep_existing: bool = False) -> None:
    """Write a file atomically: after a crash the path has the old or the new bytes, never a part of either.

    Its folder is created if necessary. `keep_existing`: leave a file that is there, or that another process creates
    first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}")
    try:
        with open(os.open(temporary, os.O_WRONLY | NEW_FILE, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep_existing:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path | str) -> None:
    """Force a folder's entries to disk: the names of files that were created, renamed or deleted in it."""
    if not IS_POSIX:
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file or folder until it is closed. False if another process has it, or without locks."""
    if not HAS_LOCKS:
        return False
    try:
        flock(descriptor, LOCK_EX if wait else LOCK_EX | LOCK_NB)
    except OSError:
        return False
    return True


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """Read at most `count` bytes at an offset, for any number of threads."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, offset)
    with _OFFSETS:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, count)


def write_at(descriptor: int, data: memoryview, offset: int) -> int:
    """Write at an offset, for any number of threads. Returns how many bytes were written."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, offset)
    with _OFFSETS:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)


def user_folder(kind: Literal["config", "data", "cache"], environment: Mapping[str, str] = os.environ) -> Path:
    """The folder `adapter-registry` in `$XDG_CONFIG_HOME`, `$XDG_DATA_HOME` or `$XDG_CACHE_HOME`."""
    home = environment.get(f"XDG_{kind.upper()}_HOME") or _USER_FOLDERS[kind]
    return Path(home).expanduser() / "adapter-registry"
