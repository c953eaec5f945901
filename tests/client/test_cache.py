"""The cache of pulled blobs: its limit, what goes first, and that nobody fetches what somebody is fetching."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from registry.client.local import cache as cache_module
from registry.client.local.cache import LEFT_SECONDS, LIMIT_SETTING, LINK_FROM_BYTES, Cache
from registry.digest import Digest
from registry.errors import Invalid

SIZE = 1000


def blob(number: int, size_bytes: int = SIZE) -> tuple[Digest, bytes]:
    data = b"%d" % number * size_bytes
    return Digest.of(data[:size_bytes]), data[:size_bytes]


def _write(path: Path, *, data: bytes) -> None:
    path.write_bytes(data)


def fill(cache: Cache, number: int, target: Path, *, size_bytes: int = SIZE) -> Digest:
    digest, data = blob(number, size_bytes)
    assert cache.fill(digest, len(data), target, partial(_write, data=data))
    age(cache, digest, number)
    return digest


def age(cache: Cache, digest: Digest, moment: int) -> None:
    """As if it had been used last then: clocks of file systems are coarse."""
    path = cache.path_of(digest)
    os.utime(path, ns=(moment * 10**9, path.stat().st_mtime_ns))


def test_what_was_not_used_for_longest_is_deleted_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=3 * SIZE)
    first, second, third = (fill(cache, number, tmp_path / str(number)) for number in (1, 2, 3))
    assert cache.take(first, SIZE, tmp_path / "again")
    fourth = fill(cache, 4, tmp_path / "4")
    assert {d for d in (first, second, third, fourth) if cache.path_of(d).exists()} == {first, third, fourth}
    assert (tmp_path / "2").read_bytes() == blob(2)[1]


def test_what_a_killed_process_left_half_written_goes_after_a_day(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=3 * SIZE)
    digest = fill(cache, 1, tmp_path / "1")
    folder = cache.path_of(digest).parent
    abandoned, coming, lock = (folder / name for name in (".0123-left", ".0123-coming", ".0123.lock"))
    for path in (abandoned, coming, lock):
        path.write_bytes(bytes(2 * SIZE))
    for path in (abandoned, lock):
        os.utime(path, (0, time.time() - LEFT_SECONDS - 1))
    assert cache.trim() == 4 * SIZE
    assert [path for path in folder.iterdir() if path.name.startswith(".")] == [coming]
    assert cache.take(digest, SIZE, tmp_path / "again")


def test_what_was_handed_out_as_a_link_stays_when_the_cache_lets_it_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=LINK_FROM_BYTES)
    first = fill(cache, 1, tmp_path / "1", size_bytes=LINK_FROM_BYTES)
    assert (tmp_path / "1").stat().st_nlink == 2
    fill(cache, 2, tmp_path / "2", size_bytes=LINK_FROM_BYTES)
    assert not cache.path_of(first).exists()
    assert (tmp_path / "1").read_bytes() == blob(1, LINK_FROM_BYTES)[1]


def test_a_blob_larger_than_the_limit_is_handed_out_and_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=SIZE - 1)
    digest = fill_only(cache, tmp_path / "1")
    assert (tmp_path / "1").read_bytes() == blob(1)[1]
    assert not cache.path_of(digest).exists()


def fill_only(cache: Cache, target: Path) -> Digest:
    digest, data = blob(1)
    cache.fill(digest, SIZE, target, partial(_write, data=data))
    return digest


@pytest.mark.parametrize(("locked_from", "outcome"), [(SIZE, (True, False, 1)), (SIZE + 1, (True, True, 2))])
def test_others_wait_for_a_large_blob_that_is_being_fetched_and_fetch_a_small_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked_from: int, outcome: tuple[bool, bool, int]
) -> None:
    monkeypatch.setattr(cache_module, "LOCKED_FROM_BYTES", locked_from)
    cache = Cache(tmp_path / "cache")
    digest, data = blob(1)
    begun, go_on, fetched = threading.Semaphore(0), threading.Event(), []

    def slowly(path: Path) -> None:
        begun.release()
        assert go_on.wait(60)
        fetched.append(path)
        path.write_bytes(data)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.fill, digest, SIZE, tmp_path / "one", slowly)
        assert begun.acquire(timeout=60)
        second = pool.submit(Cache(cache.root).fill, digest, SIZE, tmp_path / "two", slowly)
        assert locked_from == SIZE or begun.acquire(timeout=60)
        go_on.set()
        assert (first.result(60), second.result(60), len(fetched)) == outcome
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == data
    assert [path.name for path in cache.root.rglob("*") if path.is_file()] == [digest.hex]


def test_the_users_cache_has_the_limit_of_the_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(LIMIT_SETTING, "12345")
    assert (Cache.of_user().limit_bytes, Cache.of_user().root) == (12345, tmp_path / "adapter-registry/blobs")
    monkeypatch.setenv(LIMIT_SETTING, "10 GB")
    with pytest.raises(Invalid, match=LIMIT_SETTING):
        Cache.of_user()


def test_a_copy_on_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried next, fetching straight to the target, would find it there, and say so instead of what is wrong."""
    cache, target = Cache(tmp_path / "cache"), tmp_path / "target"
    digest = fill(cache, 1, tmp_path / "first")

    def half(_source: Path, copy: Path) -> None:
        copy.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", half)
    assert not cache.take(digest, SIZE, target)
    assert not target.exists()
