"""The file system: files that survive a power cut, and the folders of a user (XDG Base Directory Specification)."""

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

_USER_FOLDERS = {"config": "~/.config", "data": "~/.local/share", "cache": "~/.cache"}


def replace_file(path: Path, data: bytes, *, mode: int = 0o644, keep_existing: bool = False) -> None:
    """Write a file atomically: after a crash the path has the old or the new bytes, never a part of either.

    `keep_existing`: leave a file that is there, or that another process creates first.
    """
    temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with open(os.open(temporary, flags, mode), "wb") as file:
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
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def user_folder(kind: Literal["config", "data", "cache"], environment: Mapping[str, str] = os.environ) -> Path:
    """The folder `adapter-registry` in `$XDG_CONFIG_HOME`, `$XDG_DATA_HOME` or `$XDG_CACHE_HOME`."""
    home = environment.get(f"XDG_{kind.upper()}_HOME") or _USER_FOLDERS[kind]
    return Path(home).expanduser() / "adapter-registry"
