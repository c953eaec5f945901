"""The codec of Xet uploads: bytes that hf-xet has sent, what the encoder of these tests makes, and hostile bodies."""

from __future__ import annotations

import contextlib
import tracemalloc
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.errors import Invalid, RegistryError, TooLarge
from registry.hub.xet import hashes
from registry.hub.xet.shards import Segment, read_files
from registry.hub.xet.xorbs import CHUNK_LIMIT_BYTES, read_chunks
from tests.hub.hostile_xet import DATA, HOSTILE_SHARDS, HOSTILE_XORBS, OID
from tests.hub.xet import Xorb, pack, shard_of, split, xorb_of

RECORDED = Path(__file__).with_name("recorded")


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


@settings(deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.integers(0, 2)), min_size=1, max_size=40))
def test_what_is_packed_is_unpacked(chunks: list[tuple[bytes, int]]) -> None:
    body = b"".join(pack(data, scheme) for data, scheme in chunks)
    assert list(read_chunks(body)) == [data for data, _ in chunks]
    assert list(read_chunks(body + b"XETBLOB and an index")) == [data for data, _ in chunks]
    assert xorb_of([data for data, _ in chunks]).hash != xorb_of([b"other", *(data for data, _ in chunks)]).hash


@settings(deadline=None)
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


@settings(max_examples=200, deadline=None)
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
