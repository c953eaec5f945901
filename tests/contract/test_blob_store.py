"""What every blob store must do: the contract of `registry.server.storage.blobs.BlobStore`."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from registry.digest import Digest
from registry.errors import Invalid, NotFound, TooLarge, Unavailable
from registry.server.storage.blobs import BlobStore, key_of, staging_key_of, write_blob
from registry.server.storage.local import LocalBlobs
from registry.server.storage.s3 import uploads
from registry.server.storage.s3.store import S3Blobs
from tests.memory_blobs import MemoryBlobs

DATA = random.Random(7).randbytes(3 * 2**20 + 17)
DIGEST = Digest.of(DATA)
KEY = key_of(DIGEST)


@pytest.fixture(params=["memory", "local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "s3":
        url, endpoint = request.getfixturevalue("s3_url"), request.getfixturevalue("object_store")
        return S3Blobs.from_url(url, endpoint=endpoint)
    return MemoryBlobs() if request.param == "memory" else LocalBlobs(tmp_path / "not" / "there" / "yet")


def pieces(data: bytes, size: int = 100_000) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


def test_a_blob_is_read_back_whole_and_in_ranges(store: BlobStore) -> None:
    stat = write_blob(store, KEY, pieces(DATA), limit_bytes=len(DATA))
    assert (stat.size_bytes, stat.key) == (len(DATA), KEY)
    assert b"".join(store.open(KEY)) == DATA
    assert b"".join(store.open(KEY, 2**20 - 1, 2**20 + 3)) == DATA[2**20 - 1 : 2**21 + 2]
    assert store.read(KEY, len(DATA) - 5, 100) == DATA[-5:]
    assert store.read(KEY, len(DATA) + 5, 100) == b""
    assert store.read(KEY, 0, 0) == b""


def test_an_empty_blob_can_be_stored(store: BlobStore) -> None:
    key = key_of(Digest.of(b""))
    assert write_blob(store, key, [], limit_bytes=0).size_bytes == 0
    assert list(store.open(key)) == []


def test_wrong_bytes_are_rejected_and_leave_nothing(store: BlobStore) -> None:
    with pytest.raises(Invalid) as refusal:
        write_blob(store, KEY, [DATA[:-1] + b"x"], limit_bytes=len(DATA))
    assert (refusal.value.code, refusal.value.findings[0].code) == ("BLOB_MISMATCH", "blob.digest_mismatch")
    assert store.stat(KEY) is None
    assert list(store.list("blobs/")) == []
    assert_no_litter(store)


def test_too_many_bytes_are_rejected_before_the_stream_ends(store: BlobStore) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 1000
            yield b"a" * 1000

    with pytest.raises(TooLarge):
        write_blob(store, KEY, endless(), limit_bytes=10_000)
    assert sent <= 12_000
    assert store.stat(KEY) is None
    assert_no_litter(store)


def test_a_broken_stream_leaves_nothing(store: BlobStore) -> None:
    def broken() -> Iterator[bytes]:
        yield DATA[:1000]
        raise ConnectionError("the line broke")

    with pytest.raises(ConnectionError):
        write_blob(store, KEY, broken(), limit_bytes=len(DATA))
    assert store.stat(KEY) is None
    assert_no_litter(store)


def test_writing_again_leaves_the_blob_as_it_is(store: BlobStore) -> None:
    for _ in range(2):
        write_blob(store, KEY, [DATA], limit_bytes=len(DATA))
    assert b"".join(store.open(KEY)) == DATA
    assert [stat.key for stat in store.list("blobs/")] == [KEY]
    assert_no_litter(store)


def test_deleting_is_idempotent(store: BlobStore) -> None:
    write_blob(store, KEY, [DATA], limit_bytes=len(DATA))
    store.delete(KEY)
    store.delete(KEY)
    assert store.stat(KEY) is None


def test_opening_a_missing_blob_raises_before_the_first_chunk(store: BlobStore) -> None:
    with pytest.raises(NotFound):
        store.open(KEY)
    with pytest.raises(NotFound):
        store.read(KEY, 0, 1)


def test_a_reader_keeps_its_bytes_while_the_blob_is_deleted(store: BlobStore) -> None:
    write_blob(store, KEY, [DATA], limit_bytes=len(DATA))
    reader = iter(store.open(KEY))
    first = next(reader)
    store.delete(KEY)
    assert first + b"".join(reader) == DATA


def test_listing_returns_keys_sizes_and_times_under_a_prefix(store: BlobStore) -> None:
    for data in (b"1", b"22", b"333"):
        write_blob(store, key_of(Digest.of(data)), [data], limit_bytes=3)
    assert sorted(stat.size_bytes for stat in store.list("blobs/")) == [1, 2, 3]
    assert [stat.size_bytes for stat in store.list(key_of(Digest.of(b"22"))[:-64])] == [2]
    assert list(store.list("records/")) == []
    assert all(abs(stat.modified_at - datetime.now(UTC)) < timedelta(minutes=1) for stat in store.list("blobs/"))


@pytest.mark.parametrize("key", ["", "blobs/../../etc/passwd", "staging/../" + "a" * 64, "blobs/sha256/ab/" + "A" * 64])
def test_an_invalid_key_raises_and_touches_nothing(store: BlobStore, key: str) -> None:
    for call in (store.stat, store.open, store.delete):
        with pytest.raises(ValueError, match="is not the key of a blob"):
            call(key)


def test_racing_writers_of_one_blob_all_succeed(store: BlobStore) -> None:
    data = DATA[: 2**18]
    digest = Digest.of(data)
    failures = list[BaseException]()
    start = threading.Barrier(8)

    def push() -> None:
        try:
            start.wait()
            for _ in range(5):
                write_blob(store, key_of(digest), pieces(data, 50_000), limit_bytes=len(data))
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=push) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert b"".join(store.open(key_of(digest))) == data
    assert_no_litter(store)


def damage(store: BlobStore, key: str) -> None:
    """Other bytes under a key, as no call of the protocol could put them there."""
    if isinstance(store, MemoryBlobs):
        store.insert(key, b"rotten")
    elif isinstance(store, LocalBlobs):
        store.local_path(key).write_bytes(b"rotten")
    elif isinstance(store, S3Blobs):
        store.bucket.put(key, b"rotten")


def test_writing_again_replaces_damaged_bytes(store: BlobStore) -> None:
    write_blob(store, KEY, pieces(DATA), limit_bytes=len(DATA))
    damage(store, KEY)
    assert b"".join(store.open(KEY)) == b"rotten"
    write_blob(store, KEY, pieces(DATA), limit_bytes=len(DATA))
    assert b"".join(store.open(KEY)) == DATA
    assert_no_litter(store)


def test_refs_are_stored_beside_the_blobs(store: BlobStore) -> None:
    key = f"refs/acme/support-1.0/3/{DIGEST.hex}"
    write_blob(store, key, pieces(DATA), limit_bytes=len(DATA))
    assert [(stat.key, stat.size_bytes) for stat in store.list("refs/")] == [(key, len(DATA))]
    assert list(store.list("blobs/")) == []
    store.delete(key)
    assert list(store.list("refs/acme/")) == []
    for folder in ("refs/../x/3", "refs", "refs/a/b/c", "backups/today"):
        with pytest.raises(ValueError, match="not the key"):
            store.stat(f"{folder}/{DIGEST.hex}")


def test_old_unfinished_uploads_are_deleted_and_young_ones_go_on(store: BlobStore) -> None:
    writer = store.open_writer(KEY, limit_bytes=2**27)
    writer.write(DATA)
    assert store.delete_unfinished(timedelta(hours=1)) == 0
    writer.write(b"")
    assert writer.finish().size_bytes == len(DATA)


@pytest.mark.parametrize("size_bytes", [0, 1000, 2**30])
def test_what_no_client_has_written_is_not_collected(store: BlobStore, size_bytes: int) -> None:
    write_blob(store, KEY, [DATA], limit_bytes=len(DATA))
    assert store.collect(staging_key_of("push1", DIGEST), size_bytes) is None


def test_an_interface_of_ten_methods() -> None:
    methods = [name for name, value in vars(BlobStore).items() if callable(value) and not name.startswith("_")]
    assert len(methods) <= 10, methods


def assert_no_litter(store: BlobStore) -> None:
    if isinstance(store, LocalBlobs):
        assert not list((store.root / "tmp").glob("*"))
    if isinstance(store, S3Blobs):
        assert uploads.abort_uploads(store.bucket, datetime.now(UTC) + timedelta(hours=1)) == 0


# ------------------------------------------------------------------ what only a folder can show
def test_a_process_that_dies_while_writing_leaves_a_temporary_file_and_no_blob(tmp_path: Path) -> None:
    store = LocalBlobs(tmp_path)
    child = os.fork()
    if child == 0:
        store.open_writer(KEY, limit_bytes=len(DATA)).write(DATA[:1000])
        os._exit(9)
    os.waitpid(child, 0)
    assert store.stat(KEY) is None
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    assert store.delete_unfinished(timedelta(hours=1)) == 0
    assert store.delete_unfinished(timedelta(seconds=-1)) == 1
    assert_no_litter(store)


def test_a_full_disk_raises_unavailable_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalBlobs(tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    sink = store.open_writer(KEY, limit_bytes=len(DATA))
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Unavailable, match="No space left"):
        sink.write(DATA)
    sink.abort()
    assert_no_litter(store)


def test_a_file_url_names_a_folder(tmp_path: Path) -> None:
    assert LocalBlobs.from_url((tmp_path / "a b").as_uri()).root == tmp_path / "a b"
    for url in ("s3://bucket/x", "file://elsewhere/x", "file:relative", "/srv"):
        with pytest.raises(Invalid):
            LocalBlobs.from_url(url)
