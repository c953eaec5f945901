"""`read_files`: the files that a shard describes.

    48 bytes of header: 32 of a fixed tag, version (u64), length of a footer (u64)
    for each file, in records of 48 bytes; numbers are little-endian u32
        file hash (32), flags, number of segments, 8 unused
        for each segment: hash of the xorb (32), flags, unpacked bytes, first chunk, chunk after the last
        with flag bit 31: a record for each segment, which proves something to servers that share xorbs; not read
        with flag bit 30: SHA-256 of the file (32), 16 unused
    a record that begins with 32 bytes 0xFF ends the files; xorbs follow, which are known already

The file hash is not checked, because the SHA-256 is: that is what a version refers to.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from registry.digest import Digest
from registry.errors import Invalid, TooLarge
from registry.hub.operations import OPERATIONS_LIMIT, Body
from registry.hub.xet.hashes import to_text
from registry.hub.xet.xorbs import CHUNKS_LIMIT
from registry.versions.files import FILE_LIMIT_BYTES

SHARD_LIMIT_BYTES = 64 * 2**20
SEGMENTS_LIMIT = 2**16
"""Segments of all files of a shard."""
SEGMENT_BYTES = 8 * 2**10
"""Segments are this large on average, apart from one a file and some more: the Xet protocol has no smaller chunks but
the last of a file. Each segment is a read of the store."""
SMALL_SEGMENTS_LIMIT = 64
FILES_LIMIT = OPERATIONS_LIMIT
_TAG = b"HFRepoMetaData\0" + bytes.fromhex("556967456a7b815783a5bdd95ccdd14aa9")
_VERSION = 2
_HEADER = struct.Struct("<32sQQ")
_RECORD = struct.Struct("<32sIIII")
_END = b"\xff" * 32
_WITH_PROOFS, _WITH_SHA256 = 1 << 31, 1 << 30


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of chunks, `first` to before `end`, of the xorb with this hash (as text)."""

    xorb: str
    size_bytes: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A file: its SHA-256 and the segments that it is made of, one after another."""

    digest: Digest
    segments: tuple[Segment, ...]

    @property
    def size_bytes(self) -> int:
        """The number of bytes of all segments."""
        return sum(segment.size_bytes for segment in self.segments)


def read_files(body: Body) -> list[ShardFile]:
    """Return the files of a shard. `Invalid` (REQUEST_INVALID) and `TooLarge` (SIZE_INVALID) name the file."""
    header = body[: _HEADER.size]
    if len(header) < _HEADER.size or _HEADER.unpack(header)[:2] != (_TAG, _VERSION):
        raise Invalid("REQUEST_INVALID", f"shard: does not begin as one of version {_VERSION}")
    files: list[ShardFile] = []
    records = _records(body)
    count = 0
    for digest, flags, number, _, _ in records:
        if digest == _END:
            _check_segments(files, count)
            return files
        count += number
        if len(files) >= FILES_LIMIT or count > SEGMENTS_LIMIT:
            raise TooLarge("SIZE_INVALID", f"shard: over the limit of {FILES_LIMIT} files or {SEGMENTS_LIMIT} segments")
        if not number or flags & ~(_WITH_PROOFS | _WITH_SHA256) or not flags & _WITH_SHA256:
            raise Invalid("REQUEST_INVALID", f"shard: file {len(files)} has no segment, no SHA-256, or unknown flags")
        files.append(_read_file(records, number, bool(flags & _WITH_PROOFS), len(files)))
    raise _cut()


def _check_segments(files: Sequence[ShardFile], count: int) -> None:
    size_bytes = sum(file.size_bytes for file in files)
    if count > SMALL_SEGMENTS_LIMIT + len(files) + size_bytes // SEGMENT_BYTES:
        message = (
            f"shard: has {count} segments for {size_bytes} bytes, more segments than one for {SEGMENT_BYTES} bytes"
        )
        raise Invalid("REQUEST_INVALID", message)


Record = tuple[bytes, int, int, int, int]


def _read_file(records: Iterator[Record], number: int, has_proofs: bool, position: int) -> ShardFile:
    segments = []
    for _ in range(number):
        xorb, _, size_bytes, first, end = _next(records)
        if not (first < end <= CHUNKS_LIMIT and size_bytes):
            raise Invalid("REQUEST_INVALID", f"shard: file {position} has a segment of chunks {first} to {end}")
        segments.append(Segment(to_text(xorb), size_bytes, first, end))
    for _ in range(number if has_proofs else 0):
        _next(records)
    file = ShardFile(Digest(f"sha256:{to_text(_next(records)[0])}"), tuple(segments))
    if file.size_bytes > FILE_LIMIT_BYTES:
        raise TooLarge("SIZE_INVALID", f"shard: {file.digest} is over the limit of {FILE_LIMIT_BYTES} bytes of a file")
    return file


def _records(body: Body) -> Iterator[Record]:
    for at in range(_HEADER.size, len(body) - _RECORD.size + 1, _RECORD.size):
        yield _RECORD.unpack(body[at : at + _RECORD.size])


def _next(records: Iterator[Record]) -> Record:
    record = next(records, None)
    if record is None:
        raise _cut()
    return record


def _cut() -> Invalid:
    return Invalid("REQUEST_INVALID", "shard: ends in the middle of its files")
