"""Moves bytes: a file up to where a plan says, a file down from where a link says.

A download is hashed as it arrives and synced to disk before its name is trusted; a wrong length or hash is `Corrupt`,
and the file is removed. A broken connection continues where it broke, a few times. Progress goes back when bytes are
sent again.
"""

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from registry.api.catalog import FileLink
from registry.api.transfer import Upload, UploadPart
from registry.client.core import Versions
from registry.client.transport import Take
from registry.digest import Hasher
from registry.errors import Corrupt, Unavailable
from registry.filesystem import NEW_FILE, write_at
from registry.versions.files import CHUNK_BYTES

_NEW = os.O_RDWR | NEW_FILE
ATTEMPTS_LIMIT = 4
WRITE_BACK_BYTES = 4 * 2**20
FILES_AT_ONCE = 4
"""Files of one version, up or down."""
PARTS_AT_ONCE = 3
RANGES_FROM_BYTES = 64 * 2**20
RANGE_BYTES = 32 * 2**20
"""Stores with a small read cache stream longer ranges at a fraction of their speed."""
RANGES_AT_ONCE = 2


class Progress(Protocol):
    """Receives the total and each step in bytes; a step back is negative."""

    def start(self, total_bytes: int) -> None:
        """Set the total."""

    def advance(self, count: int) -> None:
        """Count a step."""


class Silent:
    """Progress that is not shown."""

    def start(self, _total_bytes: int) -> None:
        """Set the total."""
        return

    def advance(self, _count: int) -> None:
        """Count a step."""
        return


def send(registry: Versions, upload: Upload, source: Path, progress: Progress) -> None:
    """Send the file at `source` as the blob of the plan, whole or in the missing parts."""
    with open(source, "rb", buffering=0) as file:
        if not upload.parts:
            put = registry.connection.send_file
            put(upload.url, file, 0, upload.size_bytes, headers=upload.headers, advance=progress.advance)
            return
        run_parallel(lambda part: _send_part(registry, part, file, progress), upload.parts, PARTS_AT_ONCE)


def _send_part(registry: Versions, part: UploadPart, file: io.FileIO, progress: Progress) -> None:
    registry.connection.send_file(part.url, file, part.start, part.size_bytes, advance=progress.advance)


@dataclass(frozen=True, slots=True)
class Direct:
    """A link straight to the store, used until a moment of `time.monotonic`; empty for none."""

    url: str = field(default="", repr=False)
    until: float = 0.0


NO_LINK = Direct()


def fetch(
    registry: Versions, link: FileLink, target: Path, progress: Progress, *, direct: Direct = NO_LINK,
    durable: bool = True,
) -> None:  # fmt: skip
    """Write the file behind `link` to the new file `target`. `Corrupt`; `OSError` if this machine cannot write it.

    `durable=False` does not wait for the disk, for a file that is hashed again before use.
    """
    descriptor = os.open(target, _NEW, 0o644)
    try:
        fetcher = _Fetch(registry, link, direct, descriptor, progress)
        is_small = link.size_bytes < RANGES_FROM_BYTES or not hasattr(os, "preadv")
        fetcher.whole() if is_small else fetcher.in_ranges()
        fetcher.check()
        if durable:
            os.fsync(descriptor)
    except BaseException as e:
        with contextlib.suppress(OSError):
            target.unlink()
        if isinstance(e, _Unwritable):
            raise OSError(e.error.errno, e.error.strerror, str(target)) from e
        raise
    finally:
        os.close(descriptor)


class _Unwritable(Exception):
    """This machine cannot write the file. An `OSError` would pass for a failure of the connection."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class _Fetch:
    """One download. The hash follows the bytes in order."""

    def __init__(self, registry: Versions, link: FileLink, direct: Direct, descriptor: int, progress: Progress) -> None:
        self._connection = registry.connection
        self._link, self._direct = link, direct
        self._descriptor = descriptor
        self._progress = progress
        self._hasher = Hasher()

    def whole(self) -> None:
        def take(piece: memoryview) -> None:
            self._hasher.update(piece)

        self._range(0, self._link.size_bytes, take)

    def in_ranges(self) -> None:
        """Some ranges at once, each written in place and read back for the hash in order."""
        starts = range(0, self._link.size_bytes, RANGE_BYTES)
        buffer = memoryview(bytearray(CHUNK_BYTES))
        with ThreadPoolExecutor(RANGES_AT_ONCE, thread_name_prefix="range") as pool:
            futures = [
                pool.submit(self._range, start, min(RANGE_BYTES, self._link.size_bytes - start)) for start in starts
            ]
            try:
                for start, future in zip(starts, futures, strict=True):
                    future.result()
                    end = min(start + RANGE_BYTES, self._link.size_bytes)
                    while start < end:
                        count = os.preadv(self._descriptor, [buffer[: end - start]], start)
                        self._hasher.update(buffer[:count])
                        start += count
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _range(self, start: int, length: int, also: Take = lambda _piece: None) -> None:
        begun, end = start, start + length

        def take(piece: memoryview) -> None:
            nonlocal start, begun
            if start + len(piece) > end:
                raise Corrupt(
                    "DIGEST_MISMATCH",
                    f"{self._link.path}: the registry sends more than its {self._link.size_bytes} bytes",
                )
            also(piece)
            while piece:
                try:
                    count = write_at(self._descriptor, piece, start)
                except OSError as e:
                    raise _Unwritable(e) from e
                start, piece = start + count, piece[count:]
                self._progress.advance(count)
            begun = _begin_writing_back(self._descriptor, begun, start)

        for attempt in range(1, ATTEMPTS_LIMIT + 1):
            if start == end:
                return
            range_header = (
                {} if length == self._link.size_bytes == end - start else {"Range": f"bytes={start}-{end - 1}"}
            )
            is_direct = attempt == 1 and self._direct.url and time.monotonic() < self._direct.until
            try:
                self._connection.receive(self._direct.url if is_direct else self._link.url, take, headers=range_header)
            except (Unavailable, Corrupt) as e:
                is_refused_link = is_direct and e.code == "RESPONSE_INVALID"  # the registry's own route may be right
                if attempt == ATTEMPTS_LIMIT or not (isinstance(e, Unavailable) or is_refused_link):
                    raise

    def check(self) -> None:
        link, hasher = self._link, self._hasher
        if hasher.size_bytes != link.size_bytes or hasher.digest() != link.digest:
            raise Corrupt(
                "DIGEST_MISMATCH",
                f"{link.path}: received {hasher.size_bytes} bytes that hash to {hasher.digest()}, not to {link.digest}",
                next_step="try again; if it persists, tell the operator of the registry",
            )


def _begin_writing_back(descriptor: int, begun: int, end: int) -> int:
    """Start writing to disk while bytes still arrive, so that the final fsync is short."""
    if end - begun < WRITE_BACK_BYTES or not hasattr(os, "posix_fadvise"):
        return begun
    os.posix_fadvise(descriptor, begun, end - begun, os.POSIX_FADV_DONTNEED)
    return end


def run_parallel(work: Callable[[Any], None], items: Iterable[Any], count: int) -> None:
    """Call `work` for each item, `count` at a time. The first error is raised and the rest is dropped."""
    todo = list(items)
    if len(todo) < 2:
        for item in todo:
            work(item)
        return
    with ThreadPoolExecutor(count, thread_name_prefix="transfer") as pool:
        try:
            for _ in pool.map(work, todo):
                pass
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def write_new(path: Path, data: bytes, *, durable: bool) -> None:
    """Write a new file. `durable=False` does not wait for the disk."""
    with open(os.open(path, _NEW, 0o644), "wb") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())
