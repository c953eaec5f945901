"""The local store: anything but a file under a key, and folders that cannot be read."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.digest import Digest
from registry.errors import Conflict, NotFound, Unavailable
from registry.server.storage.blobs import key_of, write_blob
from registry.server.storage.local import LocalBlobs
from tests import samples
from tests.harness import Harness
from tests.maintenance import findings

DATA = random.Random(7).randbytes(300_000)
DIGEST = Digest.of(DATA)


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


@pytest.fixture
def local(database_url: str, tmp_path: Path) -> Iterator[Harness]:
    with Harness(database_url, blobs=LocalBlobs(tmp_path / "blobs")) as harness:
        harness.add_base()
        yield harness


def file_of(harness: Harness, digest: Digest) -> Path:
    assert isinstance(harness.blobs, LocalBlobs)
    return harness.blobs.local_path(key_of(digest))


def replace_file(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "folder":
        path.mkdir()
        (path / "within").touch()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "loop" else path.with_name("nowhere"))


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "link"])
def test_anything_but_a_file_is_no_blob_and_is_moved_aside(tmp_path: Path, kind: str) -> None:
    store = LocalBlobs(tmp_path)
    path = store.root / key_of(DIGEST)
    write_blob(store, key_of(DIGEST), [DATA], limit_bytes=len(DATA))
    for _ in range(2):
        replace_file(path, kind)
        assert store.stat(key_of(DIGEST)) is None
        assert list(store.list("blobs/")) == []
        with pytest.raises(NotFound):
            store.read(key_of(DIGEST), 0, 5)
        write_blob(store, key_of(DIGEST), [DATA], limit_bytes=len(DATA))
        assert b"".join(store.open(key_of(DIGEST))) == DATA
    replace_file(path, kind)
    store.delete(key_of(DIGEST))
    assert not os.path.lexists(path)
    assert len(list((tmp_path / "aside").iterdir())) == 3, "kept for a person to look at"
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_unreadable_folder_is_an_error_and_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalBlobs(tmp_path)
    write_blob(store, key_of(DIGEST), [DATA], limit_bytes=len(DATA))
    scandir, folder = os.scandir, store.local_path(key_of(DIGEST)).parent

    def failing(path: Any) -> Any:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(Unavailable, match="Permission denied"):
        list(store.list("blobs/"))
    assert list(store.list("refs/")) == [], "a missing folder is empty"


def test_a_folder_under_a_key_is_damage_that_a_push_repairs(local: Harness) -> None:
    files = local.files()
    local.push("acme/support", files)
    weights = Digest.of(files[samples.WEIGHTS])
    file_of(local, weights).unlink()
    file_of(local, weights).mkdir()
    with pytest.raises(Conflict) as refusal:  # the plan asks for no blob that has a live row
        local.push("acme/support", {**files, "README.md": b"# another\n"})
    assert "fsck --deep" in refusal.value.next_step
    assert findings(local, deep=False) == [f"blob.bytes_missing {weights}"]
    assert findings(local) == [f"blob.damaged {weights}"]
    assert not local.push("acme/support", files).created
    assert file_of(local, weights).read_bytes() == files[samples.WEIGHTS]
    assert findings(local) == []


def test_an_unreadable_folder_is_a_finding_and_the_check_continues(
    local: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = local.files()
    local.push("acme/support", files)
    locked, lost = sorted(Digest.of(data) for data in files.values())[:2]
    file_of(local, lost).rename(away := tmp_path / "away")
    folder, scandir = file_of(local, locked).parent, os.scandir

    def failing(path: Any) -> Any:
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    expected = [f"blob.unreadable blobs/sha256/{locked.hex[:2]}/", f"blob.bytes_missing {lost}"]
    assert findings(local, deep=False) == expected
    monkeypatch.undo()
    away.rename(file_of(local, lost))
