"""The local store: folders named by digest that appear whole, are verified, and are never changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from registry.client.registry import Registry
from registry.client.transfer import pull
from registry.digest import Digest
from registry.errors import Corrupt
from registry.names import AdapterName
from registry.serving.store.local_store import LocalStore
from tests.harness import URL, Harness
from tests.samples import WEIGHTS
from tests.serving.node import FaultyTransport


def test_a_damaged_folder_is_left_alone_and_a_second_one_is_made(
    harness: Harness, transport: FaultyTransport, tmp_path: Path
) -> None:
    good = harness.files()
    version = harness.push("acme/support", good).version
    with Registry(URL, harness.secret, transport) as registry:
        first = LocalStore(tmp_path).fetch(registry, AdapterName.parse("acme/support"), version.digest)
        (first / WEIGHTS).chmod(0o600)
        (first / WEIGHTS).write_bytes(b"edited")
        again = LocalStore(tmp_path)
        assert again.find(version.digest) is None
        second = again.fetch(registry, AdapterName.parse("acme/support"), version.digest)
    assert (second.name, (first / WEIGHTS).read_bytes()) == (f"{first.name}-2", b"edited")
    assert (second / WEIGHTS).read_bytes() == good[WEIGHTS]
    assert again.digest_at(str(second)) == version.digest
    assert again.digest_at("/etc") is None


def test_two_processes_that_bring_the_same_version_share_one_folder(
    harness: Harness, transport: FaultyTransport, tmp_path: Path
) -> None:
    version = harness.push("acme/support").version
    first, other = LocalStore(tmp_path), LocalStore(tmp_path)
    with Registry(URL, harness.secret, transport) as registry:
        brought = first.fetch(registry, AdapterName.parse("acme/support"), version.digest)
        scratch = tmp_path / "incoming" / "late"
        resolved = pull.pull(registry, f"acme/support@{version.digest}", scratch, cache=None)
        assert other._put(scratch, resolved.manifest) == brought
    assert [path.name for path in first.versions.iterdir()] == [version.digest.hex]


def test_more_damaged_copies_than_anybody_needs_are_an_error(
    tmp_path: Path, harness: Harness, transport: FaultyTransport
) -> None:
    version = harness.push("acme/support").version
    for number in range(1, 10):
        location = tmp_path / "versions" / (version.digest.hex + ("" if number == 1 else f"-{number}"))
        location.mkdir(parents=True)
        (location / "x").touch()
    with Registry(URL, harness.secret, transport) as registry, pytest.raises(Corrupt, match="damaged copies"):
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
