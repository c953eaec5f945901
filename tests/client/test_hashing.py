"""Hashes begun early are those of the very files that are pushed, each is made once, and none is in anybody's way."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from registry.client.local import folder as folders
from registry.client.local import hashing
from registry.versions import files
from tests import samples

WEIGHTS = b"w" * (3 * hashing.EARLY_CHUNK_BYTES // 2)


@pytest.fixture(autouse=True)
def nothing_begun() -> None:
    hashing._begun.clear()


def write(path: Path, data: bytes = WEIGHTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_weights_are_hashed_and_each_hash_is_given_once(tmp_path: Path) -> None:
    path = write(tmp_path / "adapter_model.safetensors")
    hashing.begin(str(tmp_path), depth=0)
    assert hashing._begun[str(path)]._done.wait(60)
    assert hashing.taken(path) == (hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS))
    assert hashing.taken(path) is None


def test_of_a_folder_of_adapters_the_weights_of_each_are_hashed_and_nothing_else(tmp_path: Path) -> None:
    weights = [write(tmp_path / name / "x.safetensors", name.encode()) for name in "ab"]
    write(tmp_path / "a" / "optimizer.pt")
    write(tmp_path / "a" / "deeper" / "y.safetensors")
    write(tmp_path / "z.gguf")
    (tmp_path / "a" / "link.safetensors").symlink_to(weights[0])
    hashing.begin(str(tmp_path) + "/./", depth=1)
    assert sorted(hashing._begun) == sorted(map(str, weights))


@pytest.mark.parametrize("change", ["bytes", "another file", "gone"])
def test_a_file_that_is_not_the_same_any_more_is_hashed_again(tmp_path: Path, change: str) -> None:
    path = write(tmp_path / "adapter_model.safetensors")
    hashing.begin(str(tmp_path), depth=0)
    assert hashing._begun[str(path)]._done.wait(60)
    if change == "bytes":
        before = path.stat()
        write(path, b"v" * len(WEIGHTS))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "another file":
        os.replace(write(tmp_path / "other"), path)
    else:
        path.unlink()
    assert hashing.taken(path) is None


def test_who_asks_first_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "adapter_model.safetensors")
    monkeypatch.setattr(threading.Thread, "start", lambda _self: None)
    hashing.begin(str(tmp_path), depth=0)
    early = hashing._begun[str(path)]
    assert hashing.taken(path) is None
    early.run()  # the thread comes too late, and leaves it
    assert not early._done.is_set()


@pytest.mark.parametrize("typed", ["nowhere", "--help", "", "a\0b"])
def test_what_is_no_folder_is_for_the_command_to_refuse(typed: str) -> None:
    hashing.begin(typed, depth=1)
    assert hashing._begun == {}


def test_a_folder_is_the_same_with_hashes_begun_early_and_its_weights_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = samples.write(samples.lora(samples.llama()), tmp_path / "a")
    plain = folders.read_folder(folder)
    read: list[str] = []
    inner = hashing.hash_of

    def counting(path: Path, *options: Any) -> Any:
        read.append(path.name)
        return inner(path, *options)

    monkeypatch.setattr(hashing, "hash_of", counting)
    hashing.begin(str(folder), depth=0)
    assert hashing._begun[str(folder / files.WEIGHTS)]._done.wait(60)
    counts: list[int] = []
    assert folders.read_folder(folder, hashed=counts.append).files == plain.files
    assert read
    assert files.WEIGHTS not in read
    assert sum(counts) == plain.size_bytes


def test_memory_is_bounded_however_many_adapters_and_cores_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(20):
        write(tmp_path / str(n) / "x.safetensors", b"")
    started: list[str] = []
    monkeypatch.setattr(threading.Thread, "start", lambda self: started.append(self.name))
    monkeypatch.setattr(os, "cpu_count", lambda: 256)
    hashing.begin(str(tmp_path), depth=1)
    assert started == ["hashing"] * hashing.AT_ONCE
