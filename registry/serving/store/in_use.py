"""`InUse`: which versions of a store may be read at any moment, so that eviction leaves them.

    DIR/uses.lock          an empty file; one byte per version, share-locked by every process that has its folder
    DIR/uses/NAME.json     what an agent's engine has: the engine outlives the agent, so a lock would not do
    DIR/uses/NAME.….lock   which alias of which base running agents follow with this engine or this file

- A use begins before the folder is looked up; `exclusive` gets the version's byte alone, or nothing. It needs no space.
- A process that ends releases its uses. An engine's use ends only when the engine was seen without the version.
- A record that cannot be read, and a platform without such locks, count as a use of everything.
"""

import contextlib
import json
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from registry.digest import Digest
from registry.filesystem import replace_file

try:
    from fcntl import F_OFD_SETLK, F_OFD_SETLKW, F_RDLCK, F_UNLCK, F_WRLCK, LOCK_EX, LOCK_NB, LOCK_SH, fcntl, flock
except ImportError:  # not on this platform
    _LOCKS = False
else:
    _LOCKS = True

_OFFSET_DIGITS = 15
"""Hex digits of a digest that give its byte in the file: an offset has 63 bits. Versions may share a byte."""


class InUse:
    """Thread-safe. `name`: the agent's engine that reads the folders; empty if this process reads them."""

    def __init__(self, root: Path, name: str = "") -> None:
        self._folder, self._lock_file = root / "uses", root / "uses.lock"
        self._record = self._folder / f"{name}.json" if name else None
        self._held: set[Digest] = set()
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def mark(self, digest: Digest) -> None:
        """Mark a version as in use. If the record cannot be written, this holds for this process."""
        with self._lock:
            if digest in self._held:
                return
            if self._lock_byte(digest, shared=True):
                self._held.add(digest)
                self._write(self._recorded() | {digest})

    def keep_only(self, digests: Iterable[Digest]) -> set[Digest]:
        """End all uses but these, because the engine was seen without the others; the ended ones."""
        current = set(digests)
        with self._lock:
            before = self._recorded() | self._held
            self._write(current)
            for digest in self._held - current:
                self._unlock_byte(digest)
            self._held &= current
            return before - current

    def read_recorded(self) -> set[Digest] | None:
        """What the engines of all agents have; None if a record cannot be read."""
        in_use = set[Digest]()
        try:
            for path in self._folder.glob("*.json"):
                in_use |= _parsed(path)
        except (OSError, ValueError, TypeError):
            return None
        return in_use

    @contextlib.contextmanager
    def exclusive(self, digest: Digest) -> Iterator[bool]:
        """Whether this version is unused, and stays so while the block runs."""
        with contextlib.ExitStack() as stack:
            alone = InUse(self._lock_file.parent)
            stack.callback(alone.close)
            if not alone._lock_byte(digest, shared=False):
                yield False
                return
            recorded = self.read_recorded()
            yield recorded is not None and digest not in recorded

    def close(self) -> None:
        """Release everything that this process marked."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor, self._held = None, set()

    def _lock_byte(self, digest: Digest, *, shared: bool) -> bool:
        """A shared lock waits for as long as a rename takes; an exclusive one does not wait."""
        if not _LOCKS:
            return False
        try:
            if self._descriptor is None:
                self._lock_file.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            request = _flock(F_RDLCK if shared else F_WRLCK, digest)
            fcntl(self._descriptor, F_OFD_SETLKW if shared else F_OFD_SETLK, request)
        except OSError:
            return False
        return True

    def _unlock_byte(self, digest: Digest) -> None:
        others = {other for other in self._held if _offset(other) == _offset(digest)} - {digest}
        if self._descriptor is not None and not others:
            fcntl(self._descriptor, F_OFD_SETLK, _flock(F_UNLCK, digest))

    def _recorded(self) -> set[Digest]:
        try:
            return _parsed(self._record) if self._record is not None else set()
        except (OSError, ValueError, TypeError):
            return set()

    def _write(self, digests: set[Digest]) -> None:
        if self._record is None or (digests == self._recorded() and self._record.exists()):
            return
        with contextlib.suppress(OSError):
            replace_file(self._record, json.dumps(sorted(digests)).encode())


@contextlib.contextmanager
def follow(root: Path, name: str, purpose: str) -> Iterator[str]:
    """Declare that `name` follows `purpose` while the block runs; yields what another process declares instead, or "".

    Two agents that follow different things with one engine would undo each other's work.
    """
    with contextlib.ExitStack() as resources:
        yield _followed_by_others(resources, root / "uses", name, purpose) if _LOCKS else ""


def _followed_by_others(resources: contextlib.ExitStack, folder: Path, name: str, purpose: str) -> str:
    own_file = folder / f"{name}.{Digest.of(purpose.encode()).hex[:8]}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        flock(resources.enter_context(own_file.open("a")), LOCK_SH)
        own_file.write_text(purpose)
        for path in set(folder.glob(f"{name}.*.lock")) - {own_file}:
            with path.open("r+") as other:
                try:
                    flock(other, LOCK_EX | LOCK_NB)
                except BlockingIOError:
                    return other.read()
    except OSError:  # no locks or no folder: the first pull reports that
        return ""
    return ""


def _parsed(path: Path) -> set[Digest]:
    return {Digest(digest) for digest in json.loads(path.read_bytes())}


def _offset(digest: Digest) -> int:
    return int(digest.hex[:_OFFSET_DIGITS], 16)


def _flock(kind: int, digest: Digest) -> bytes:
    """`struct flock` of 64-bit Linux: kind, from the start of the file, one byte at the offset, no process."""
    return struct.pack("hhxxxxqqixxxx", kind, os.SEEK_SET, _offset(digest), 1, 0)
