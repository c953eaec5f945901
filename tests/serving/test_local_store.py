"""The local store: folders named by digest that appear whole, are verified, and are never changed."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from registry.client.registry import Registry
from registry.digest import Digest
from registry.errors import Unavailable
from registry.names import AdapterName
from registry.serving.store.local_store import LocalStore
from tests.harness import URL, Harness
from tests.samples import WEIGHTS
from tests.serving.node import FaultyTransport


def test_a_damaged_folder_is_exchanged_for_an_intact_one_while_a_reader_keeps_its_open_file(
    harness: Harness, transport: FaultyTransport, tmp_path: Path
) -> None:
    good = harness.files()
    version = harness.push("acme/support", good).version
    with Registry(URL, harness.secret, transport) as registry:
        first = LocalStore(tmp_path).fetch(registry, AdapterName.parse("acme/support"), version.digest)
        (first / WEIGHTS).chmod(0o600)
        (first / WEIGHTS).write_bytes(b"edited")
        with (first / WEIGHTS).open("rb") as reader:
            again = LocalStore(tmp_path)
            assert again.find(version.digest) is None
            second = again.fetch(registry, AdapterName.parse("acme/support"), version.digest)
            assert reader.read() == b"edited"
    assert (second, (second / WEIGHTS).read_bytes()) == (first, good[WEIGHTS])
    assert (second / WEIGHTS).stat().st_mode & 0o222 == 0
    assert again.digest_at(str(second)) == version.digest
    assert again.digest_at("/etc") is None


def test_two_processes_that_fetch_the_same_version_share_one_folder(
    harness: Harness, transport: FaultyTransport, tmp_path: Path
) -> None:
    digest = harness.push("acme/support").version.digest
    stores = [LocalStore(tmp_path), LocalStore(tmp_path)]
    with Registry(URL, harness.secret, transport) as registry, ThreadPoolExecutor(2) as pool:
        fetched = pool.map(lambda store: store.fetch(registry, AdapterName.parse("acme/support"), digest), stores)
        assert set(fetched) == {tmp_path / "versions" / digest.hex}
    assert [path.name for path in stores[0].versions.iterdir()] == [digest.hex]


def test_a_folder_that_the_store_did_not_make_is_an_error(
    tmp_path: Path, harness: Harness, transport: FaultyTransport
) -> None:
    version = harness.push("acme/support").version
    (tmp_path / "versions" / version.digest.hex / "mine").mkdir(parents=True)
    with Registry(URL, harness.secret, transport) as registry, pytest.raises(Unavailable, match="left untouched"):
        LocalStore(tmp_path).fetch(registry, AdapterName.parse("acme/support"), Digest(version.digest))


def test_a_store_that_lost_a_folder_brings_it_again(
    harness: Harness, transport: FaultyTransport, tmp_path: Path
) -> None:
    version = harness.push("acme/support").version
    store = LocalStore(tmp_path)
    with Registry(URL, harness.secret, transport) as registry:
        folder = store.fetch(registry, AdapterName.parse("acme/support"), version.digest)
        shutil.rmtree(folder)
        assert store.find(version.digest) is None
        assert store.fetch(registry, AdapterName.parse("acme/support"), version.digest) == folder
