"""The codec of Xet uploads: bytes that hf-xet has sent, what the encoder of these tests makes, and hostile bodies."""

from __future__ import annotations

import contextlib
import tracemalloc
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lz4.frame import compress

from registry.errors import Invalid, RegistryError, TooLarge
from registry.hub.xet import hashes
from registry.hub.xet.shards import FILES_LIMIT, SEGMENTS_LIMIT, Segment, read_files
from registry.hub.xet.xorbs import CHUNK_LIMIT_BYTES, CHUNKS_LIMIT, XORB_LIMIT_BYTES, read_chunks
from tests.hub.xet import Xorb, header, pack, shard_of, split, xorb_of

RECORDED = Path(__file__).with_name("recorded")
DATA = bytes(range(256)) * 1000
OID = sha256(DATA).hexdigest()


def test_the_recorded_upload_of_hf_xet_is_read() -> None:
    [path] = RECORDED.glob("xorb-*")
    body, name = path.read_bytes(), path.name.removeprefix("xorb-")
    chunks = list(read_chunks(body))
    assert {body[4 + at] for at in _starts(body)} == {0, 1, 2}, "each way of packing is there"
    assert xorb_of(chunks).hash == name, "the encoder names a xorb as hf-xet does"
    files = read_files((RECORDED / "shard").read_bytes())
    assert len(files) == 3
    for file in files:
        data = b"".join(b"".join(chunks[s.first : s.end]) for s in file.segments)
        assert (sha256(data).hexdigest(), len(data)) == (file.digest.hex, file.size_bytes)
        assert {segment.xorb for segment in file.segments} == {name}


def _starts(body: bytes) -> list[int]:
    starts, at = [], 0
    while at < len(body):
        starts.append(at)
        at += 8 + int.from_bytes(body[at + 1 : at + 4], "little")
    return starts


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.integers(0, 2)), min_size=1, max_size=40))
def test_what_is_packed_is_unpacked(chunks: list[tuple[bytes, int]]) -> None:
    body = b"".join(pack(data, scheme) for data, scheme in chunks)
    assert list(read_chunks(body)) == [data for data, _ in chunks]
    assert list(read_chunks(body + b"XETBLOB and an index")) == [data for data, _ in chunks]
    assert xorb_of([data for data, _ in chunks]).hash != xorb_of([b"other", *(data for data, _ in chunks)]).hash


@given(st.integers(1, 40), st.data())
def test_a_shard_is_read_as_it_was_written(number: int, data: st.DataObject) -> None:
    segment = st.builds(
        lambda text, size, first, count: Segment(text, size, first, first + count),
        st.binary(min_size=32, max_size=32).map(bytes.hex),
        st.integers(1, 2**20),
        st.integers(0, 99),
        st.integers(1, 9),
    )
    files = [(OID, data.draw(st.lists(segment, min_size=1, max_size=4))) for _ in range(min(number, 5))]
    assert [(f.digest.hex, list(f.segments)) for f in read_files(shard_of(*files))] == files


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 10**6), st.integers(0, 255))
def test_damaged_bodies_are_errors_or_values(noise: bytes, position: int, value: int) -> None:
    segment = Segment("ab" * 32, 5, 0, 1)
    xorb, shard = xorb_of(split(DATA[:3000], 500), 2).body, shard_of((OID, [segment, segment]))
    for read, body in ((read_chunks, xorb), (read_files, shard)):
        damaged = bytearray(body)
        damaged[position % len(body)] = value
        for hostile in (bytes(damaged), body[: position % len(body)], noise, body + noise):
            with contextlib.suppress(Invalid, TooLarge):
                list(read(hostile))


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


@pytest.mark.security
@pytest.mark.parametrize("case", HOSTILE_XORBS)
def test_a_hostile_xorb_is_refused_with_bounded_memory(case: str) -> None:
    body, message = HOSTILE_XORBS[case]
    tracemalloc.start()
    try:
        with pytest.raises(RegistryError, match=message):
            for _ in read_chunks(body):
                pass
        assert tracemalloc.get_traced_memory()[1] < 8 * CHUNK_LIMIT_BYTES
    finally:
        tracemalloc.stop()


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


@pytest.mark.security
@pytest.mark.parametrize("case", HOSTILE_SHARDS)
def test_a_hostile_shard_is_refused(case: str) -> None:
    body, message = HOSTILE_SHARDS[case]
    with pytest.raises(RegistryError, match=message):
        read_files(body)


def test_hashes_are_texts_of_reversed_groups() -> None:
    xorb: Xorb = xorb_of([b"one"])
    assert xorb.hash == hashes.to_text(hashes.chunk_hash(b"one")), "a tree of one chunk is that chunk"
    assert hashes.to_text(bytes(range(32))) == "07060504030201000f0e0d0c0b0a090817161514131211101f1e1d1c1b1a1918"
    assert [hashes.is_text(text) for text in (xorb.hash, xorb.hash.upper(), xorb.hash[1:], xorb.hash + "\n")] == [
        True, False, False, False,
    ]  # fmt: skip
