"""`Cache`: blobs that this machine pulled before, by digest.

Invariants
- A cached blob is hashed again whenever it is used: nobody's edit of a pulled file becomes somebody's adapter.
- Large blobs are handed out as hard links and are read-only; small ones as copies, which people like to edit.
- Files appear under their digest whole or not at all, so any number of processes may share a cache.

Example
    >>> Cache.of_user().take(digest, size_bytes, Path("adapter_model.safetensors"))
    False
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from registry.client import streams
from registry.digest import Digest

LINK_FROM_BYTES = 2**20


class Cache:
    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def of_user(cls) -> Cache:
        """`$XDG_CACHE_HOME/adapter-registry/blobs`, else below `~/.cache`."""
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return cls(Path(home).expanduser() / "adapter-registry" / "blobs")

    def path_of(self, digest: Digest) -> Path:
        return self.root / "sha256" / digest.hex[:2] / digest.hex

    def take(self, digest: Digest, size_bytes: int, target: Path) -> bool:
        """Put the blob at `target`, if it is here and still itself. A damaged one is thrown away."""
        kept = self.path_of(digest)
        try:
            if kept.stat().st_size != size_bytes or streams.hash_of(kept) != digest:
                kept.unlink(missing_ok=True)
                return False
            hand_out(kept, target)
        except OSError:
            return False
        return True

    def fill(self, digest: Digest, target: Path, fetch: Callable[[Path], None]) -> None:
        """Fetch the blob into the cache and put it at `target`. A cache that cannot be written is passed over."""
        kept = self.path_of(digest)
        new = kept.with_name(f".{digest.short}-{secrets.token_hex(6)}")
        try:
            kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            fetch(target)
            return
        try:
            fetch(new)
            os.chmod(new, 0o444)
            os.replace(new, kept)
            hand_out(kept, target)
        finally:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)


def hand_out(kept: Path, target: Path) -> None:
    """A large file as a hard link where the file system has them, else as a copy."""
    if kept.stat().st_size >= LINK_FROM_BYTES:
        with contextlib.suppress(OSError):
            os.link(kept, target)
            return
    with contextlib.suppress(FileNotFoundError):
        target.unlink()
    shutil.copyfile(kept, target)
    with open(target, "rb+") as file:
        os.fsync(file.fileno())
