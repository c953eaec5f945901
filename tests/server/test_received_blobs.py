"""What is kept from the arrival of bytes to the commit: few of them, verified, and for the push that has sent them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.digest import Digest
from registry.errors import Invalid
from registry.server.push import received
from registry.server.push.received import ReceivedBlobs, ReceivedFiles
from registry.server.storage.blobs import staging_key_of
from registry.server.storage.local import LocalBlobs
from registry.versions.files import WEIGHTS
from tests.harness import Harness
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


def write(files: ReceivedFiles, folder: Path, push_id: str, data: bytes = DATA) -> Path:
    blobs, key = LocalBlobs(folder), staging_key_of(push_id, Digest.of(data))
    path = blobs.local_path(key)
    assert path is not None
    writer = files.noting(path, blobs.open_writer(key, limit_bytes=len(data)))
    writer.write(data)
    writer.finish()
    return path


def test_an_unchanged_file_is_read_once(tmp_path: Path) -> None:
    files = ReceivedFiles()
    path = write(files, tmp_path, "psh_one")
    assert (files.read(path.with_name("other")), files.read(path), files.read(path)) == (None, DATA, None)


def overwrite(path: Path) -> None:
    path.write_bytes(DATA[::-1])
    os.utime(path, ns=(0, 1))


def replace(path: Path) -> None:
    times = path.stat()
    path.rename(path.with_name("before"))
    path.write_bytes(DATA[::-1])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"!")


@pytest.mark.security
@pytest.mark.parametrize("change", [overwrite, replace, extend, Path.unlink])
def test_a_file_that_was_changed_is_not_taken_for_verified(change: Callable[[Path], object], tmp_path: Path) -> None:
    files = ReceivedFiles()
    path = write(files, tmp_path, "psh_one")
    change(path)
    assert files.read(path) is None


def test_the_oldest_files_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReceivedFiles, "FILES_LIMIT", 2)
    files = ReceivedFiles()
    paths = [write(files, tmp_path, f"psh_{number}") for number in range(3)]
    assert [files.read(path) for path in paths] == [None, DATA, DATA]


def test_a_commit_neither_hashes_nor_reads_the_weights_again(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Harness(database_url, blobs=LocalBlobs(tmp_path / "blobs")) as harness:
        harness.add_base()
        adapter = harness.files()
        digest, read, keys = Digest.of(adapter[WEIGHTS]), harness.blobs.read, []

        def note_key(key: str, *how: int) -> bytes:
            keys.append(key)
            return read(key, *how)

        monkeypatch.setattr(harness.blobs, "read", note_key)
        harness.push("acme/support", adapter)
        assert [key for key in keys if digest.hex in key] == []
