"""Bodies of xorbs and shards that no honest client sends: by name, the bytes and words of the error."""

from __future__ import annotations

from hashlib import sha256

from lz4.frame import compress

from registry.hub.xet.shards import FILES_LIMIT, SEGMENTS_LIMIT, Segment
from registry.hub.xet.xorbs import CHUNK_LIMIT_BYTES, CHUNKS_LIMIT, XORB_LIMIT_BYTES
from tests.hub.xet import header, pack, shard_of

DATA = bytes(range(256)) * 1000
OID = sha256(DATA).hexdigest()
BOMB = compress(bytes(2**24))  # 64 KiB
FULL_CHUNK = pack(bytes(CHUNK_LIMIT_BYTES), 1)
HOSTILE_XORBS = {
    "empty": (b"", "no chunk"),
    "cut header": (b"\0\1\0", "has no header"),
    "version": (b"\1" + header(1, 0, 1)[1:] + b"x", "has no header"),
    "longer than the body": (header(9, 0, 9) + b"x", "ends after the body"),
    "empty chunk": (header(0, 0, 0), "is empty"),
    "another length": (header(1, 0, 2) + b"x", "does not have the 2 bytes"),
    "unknown scheme": (header(1, 3, 1) + b"x", "scheme 3"),
    "no frame": (header(20, 1, 4) + b"not a frame of LZ4 ..", "is not an LZ4 frame"),
    "cut frame": (header(20, 1, 1000) + compress(DATA[:1000])[:20], "whole LZ4 frame"),
    "two frames": (header(44, 1, 3) + compress(b"abc") * 2 + bytes(9), "whole LZ4 frame"),
    "frame with more": (header(len(BOMB), 1, 100) + BOMB, "does not have the 100 bytes"),
    "bomb": (header(len(BOMB), 1, CHUNK_LIMIT_BYTES) + BOMB, "does not have the"),
    "long chunk": (header(1, 1, CHUNK_LIMIT_BYTES + 1) + b"x", "over the limit"),
    "many chunks": (pack(b"x") * (CHUNKS_LIMIT + 1), "over the limit"),
    "long xorb": (FULL_CHUNK * (XORB_LIMIT_BYTES // CHUNK_LIMIT_BYTES + 1), "over the limit"),
}


def _shard_with(flags: int, number: int) -> bytes:
    body = bytearray(shard_of((OID, [Segment("ab" * 32, 5, 0, 1)])))
    body[80:88] = flags.to_bytes(4, "little") + number.to_bytes(4, "little")
    return bytes(body)


SEGMENT = Segment("ab" * 32, 5, 0, 1)
HOSTILE_SHARDS = {
    "empty": (b"", "does not begin"),
    "other": (b"x" * 48, "does not begin"),
    "no end": (shard_of((OID, [SEGMENT]), end=False), "ends in the middle"),
    "cut": (shard_of((OID, [SEGMENT]))[:150], "ends in the middle"),
    "more segments than records": (_shard_with(3 << 30, 1000), "has a segment of chunks 0 to 0"),
    "4 billion segments": (_shard_with(3 << 30, 2**32 - 1), "over the limit"),
    "a million segments": (_shard_with(3 << 30, 10**6), "over the limit"),
    "files": (shard_of(*[(OID, [SEGMENT])] * (FILES_LIMIT + 1)), "over the limit"),
    "segments of all": (shard_of(*[(OID, [SEGMENT] * (SEGMENTS_LIMIT // 8))] * 9), "over the limit"),
    "no segment": (_shard_with(3 << 30, 0), "no segment"),
    "no SHA-256": (_shard_with(1 << 31, 1), "no SHA-256"),
    "unknown flag": (_shard_with(7 << 29, 1), "unknown flags"),
    "backwards": (shard_of((OID, [Segment("ab" * 32, 5, 3, 3)])), "chunks 3 to 3"),
    "far chunks": (shard_of((OID, [Segment("ab" * 32, 5, 0, CHUNKS_LIMIT + 1)])), "chunks 0 to"),
    "empty segment": (shard_of((OID, [Segment("ab" * 32, 0, 0, 1)])), "chunks 0 to 1"),
    "long file": (shard_of((OID, [Segment("ab" * 32, 2**32 - 1, 0, 1)] * 6)), "bytes of a file"),
}
