"""Bytes that are kept from their arrival to the commit: few, verified, and for the push that has sent them."""

from __future__ import annotations

import pytest

from registry.digest import Digest
from registry.errors import Invalid
from registry.server.push import received
from registry.server.push.received import ReceivedBlobs
from registry.server.storage.blobs import staging_key_of
from tests.memory_blobs import MemoryBlobs

DATA = b"weights" * 100


def send(blobs: ReceivedBlobs, push_id: str, data: bytes, sent: bytes | None = None) -> str:
    key = staging_key_of(push_id, Digest.of(data))
    writer = blobs.keeping(key, len(data), MemoryBlobs().open_writer(key, limit_bytes=len(data)))
    half = len(data) // 2
    for chunk in ((sent or data)[:half], (sent or data)[half:]):
        writer.write(chunk)
    writer.finish()
    return key


def test_only_the_push_that_sent_the_bytes_takes_them_and_only_once() -> None:
    blobs = ReceivedBlobs()
    key = send(blobs, "psh_one", DATA)
    assert blobs.take(staging_key_of("psh_two", Digest.of(DATA))) is None
    assert (blobs.take(key), blobs.take(key)) == (DATA, None)


def test_wrong_bytes_are_not_kept() -> None:
    blobs = ReceivedBlobs()
    with pytest.raises(Invalid):
        send(blobs, "psh_one", DATA, DATA[::-1])
    assert blobs.take(staging_key_of("psh_one", Digest.of(DATA))) is None


def test_the_oldest_are_forgotten_and_large_ones_are_never_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(received, "LIMIT_BYTES", 2 * (received.ENTRY_BYTES + len(DATA)))
    monkeypatch.setattr(received, "BLOB_LIMIT_BYTES", len(DATA))
    blobs = ReceivedBlobs()
    keys = [send(blobs, f"psh_{number}", DATA) for number in (1, 2, 2, 3)]
    large = send(blobs, "psh_4", DATA + b"!")
    assert [blobs.take(key) is not None for key in (keys[0], keys[1], keys[3], large)] == [False, True, True, False]
    assert blobs._size_bytes == 0


@pytest.mark.security
@pytest.mark.parametrize("data", [b"", b"x"])
def test_tiny_blobs_without_a_commit_are_forgotten_too(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(received, "LIMIT_BYTES", 8 * (received.ENTRY_BYTES + len(data)))
    blobs = ReceivedBlobs()
    keys = [send(blobs, f"psh_{number}", data) for number in range(20)]
    assert [blobs.take(key) for key in keys] == [None] * 12 + [data] * 8
    assert blobs._size_bytes == 0
