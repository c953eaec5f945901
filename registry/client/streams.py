"""The one place where bytes move: a file up to where a plan says, a file down from where a link says.

Invariants
- What comes down is hashed as it comes and is on disk (fsync) before its name is trusted; the wrong length, the
  wrong hash and a body without an end are `Corrupt`, and the file is removed.
- A line that breaks is taken up again where it broke, a few times; memory stays at one chunk.
- Progress goes back when a request is sent again, so that it ends at what was to be moved.

Example
    >>> fetch(registry, link, Path("adapter_model.safetensors"), nothing)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from registry.client.api import Registry
from registry.digest import Digest, Hasher
from registry.errors import Corrupt, Unavailable
from registry.wire import FileLink, Upload

CHUNK_BYTES = 2**20
ATTEMPTS_LIMIT = 4


class Progress(Protocol):
    """Told how much there is to move, and of each step; a step back is negative."""

    def start(self, total_bytes: int) -> None: ...
    def advance(self, count: int) -> None: ...


class Silent:
    """Progress that nobody watches."""

    def start(self, total_bytes: int) -> None:
        return None

    def advance(self, count: int) -> None:
        return None


def send(registry: Registry, upload: Upload, source: Path, progress: Progress) -> None:
    """Send the file at `source` as the blob that the plan asked for."""
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        progress.advance(-sent)
        sent = 0
        with open(source, "rb", buffering=0) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
                sent += len(chunk)
                progress.advance(len(chunk))

    registry.upload(upload, body)


def fetch(registry: Registry, link: FileLink, target: Path, progress: Progress) -> None:
    """Write the file behind `link` to `target`, which must not exist. `Corrupt` if it is not what it should be."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(target, flags, 0o644)
    try:
        hasher = Hasher()
        for attempt in range(1, ATTEMPTS_LIMIT + 1):
            try:
                _append(registry, link, descriptor, hasher, progress)
                break
            except Unavailable:
                if attempt == ATTEMPTS_LIMIT:
                    raise
        _check(link, hasher)
        os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            target.unlink()
        raise
    finally:
        os.close(descriptor)


def _append(registry: Registry, link: FileLink, descriptor: int, hasher: Hasher, progress: Progress) -> None:
    if hasher.size_bytes == link.size_bytes:
        return
    with registry.read(link.url, start=hasher.size_bytes) as chunks:
        for chunk in chunks:
            hasher.update(chunk)
            if hasher.size_bytes > link.size_bytes:
                raise Corrupt("DIGEST_MISMATCH", f"{link.path}: more bytes come than the {link.size_bytes} that it has")
            view = memoryview(chunk)
            while view:
                view = view[os.write(descriptor, view) :]
            progress.advance(len(chunk))


def _check(link: FileLink, hasher: Hasher) -> None:
    if hasher.size_bytes != link.size_bytes or hasher.digest() != link.digest:
        raise Corrupt(
            "DIGEST_MISMATCH",
            f"{link.path}: {hasher.size_bytes} bytes came that hash to {hasher.digest()}, not to {link.digest}",
            next_step="try again; if it stays so, tell whoever runs the registry",
        )


def hash_of(path: Path) -> Digest:
    """The digest of a file on this machine."""
    hasher, buffer = Hasher(), bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(view[:count])
    return hasher.digest()
