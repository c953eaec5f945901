"""An encoder of Xet uploads, as small as tests need it, and a client that sends them to a server in this process.

`test_xet_codec.py` holds it against bytes that hf-xet 1.8.0 has sent.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import httpx
from lz4.frame import compress

from registry.hub.xet import hashes
from registry.hub.xet.shards import Segment
from tests.hub.commits import Pusher, add, add_large

CHUNK_BYTES = 64 * 2**10
TAG = b"HFRepoMetaData\0" + bytes.fromhex("556967456a7b815783a5bdd95ccdd14aa9")
ZERO = bytes(32)


@dataclass(frozen=True)
class Xorb:
    hash: str
    body: bytes
    sizes: tuple[int, ...]

    def segment(self, first: int = 0, end: int | None = None) -> Segment:
        """The run of these chunks, by default all."""
        last = len(self.sizes) if end is None else end
        return Segment(self.hash, sum(self.sizes[first:last]), first, last)


def to_bytes(text: str) -> bytes:
    """The hash of this text; it is its own inverse up to hex."""
    return b"".join(bytes.fromhex(text[at : at + 16])[::-1] for at in range(0, 64, 16))


def split(data: bytes, size: int = CHUNK_BYTES) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def pack(chunk: bytes, scheme: int = 0) -> bytes:
    """A chunk with its header."""
    grouped = b"".join(chunk[at::4] for at in range(4)) if scheme == 2 else chunk
    packed: bytes = compress(grouped) if scheme else chunk
    return header(len(packed), scheme, len(chunk)) + packed


def header(packed: int, scheme: int, unpacked: int) -> bytes:
    return b"\0" + packed.to_bytes(3, "little") + bytes([scheme]) + unpacked.to_bytes(3, "little")


def xorb_of(chunks: Sequence[bytes], scheme: int = 0) -> Xorb:
    name = hashes.to_text(hashes.xorb_hash([(hashes.chunk_hash(chunk), len(chunk)) for chunk in chunks]))
    return Xorb(name, b"".join(pack(chunk, scheme) for chunk in chunks), tuple(map(len, chunks)))


def shard_of(*files: tuple[str, Sequence[Segment]], end: bool = True) -> bytes:
    """A shard of files, each given as its SHA-256 in hex and its segments."""
    body = [TAG, struct.pack("<QQ", 2, 0)]
    for oid, segments in files:
        body.append(ZERO + struct.pack("<IIQ", 1 << 31 | 1 << 30, len(segments), 0))
        body += [_record_of(segment) for segment in segments]
        body += [bytes(48) for _ in segments]
        body.append(to_bytes(oid) + bytes(16))
    return b"".join(body) + (b"\xff" * 32 + bytes(16) if end else b"")


@functools.cache
def _record_of(segment: Segment) -> bytes:
    return to_bytes(segment.xorb) + struct.pack("<IIII", 0, segment.size_bytes, segment.first, segment.end)


class XetClient:
    """One session of a pusher."""

    def __init__(self, pusher: Pusher) -> None:
        self.pusher = pusher
        response = pusher.send("GET", f"/api/models/{pusher.name}/xet-write-token/main")
        assert response.status_code == 200, response.text
        self.url, self.token = response.json()["casUrl"], response.json()["accessToken"]

    def send(self, method: str, path: str, **rest: Any) -> httpx.Response:
        return Pusher(self.pusher.harness, self.token).send(method, self.url + path, **rest)

    def send_xorb(self, xorb: Xorb) -> httpx.Response:
        return self.send("POST", f"/v1/xorbs/default/{xorb.hash}", content=xorb.body)

    def send_shard(self, shard: bytes) -> httpx.Response:
        return self.send("POST", "/v1/shards", content=shard)

    def upload(self, data: bytes, scheme: int = 0) -> None:
        """Send one file as one xorb."""
        xorb = xorb_of(split(data), scheme)
        assert self.send_xorb(xorb).json() == {"was_inserted": True}
        response = self.send_shard(shard_of((sha256(data).hexdigest(), [xorb.segment()])))
        assert (response.status_code, response.json()) == (200, {"result": 1})


def commit(pusher: Pusher, large: dict[str, bytes], **small: bytes) -> httpx.Response:
    """Commit files that were uploaded before, and others in the commit."""
    lines = [add_large(path, sha256(data).hexdigest(), len(data)) for path, data in large.items()]
    return pusher.commit(*lines, *(add(path, data) for path, data in small.items()))
