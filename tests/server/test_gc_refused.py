"""Garbage collection of a store that does not delete: one key stands in nobody's way, an ill store is told."""

from __future__ import annotations

from typing import Any

import pytest

from registry.errors import Unavailable
from registry.server.maintenance.gc.run import FAILURES_LIMIT
from registry.server.storage.blobs import BlobStore, key_of
from tests.maintenance import collect, orphan, states
from tests.world import World


def test_what_the_store_refuses_to_delete_stands_in_nobodys_way(
    stored_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = orphan(stored_world, b"on a bad sector"), orphan(stored_world, b"beside it")
    kind: Any = type(stored_world.blobs)
    delete = kind.delete

    def refusing(blobs: BlobStore, key: str) -> None:
        if key == key_of(bad):
            raise Unavailable("STORE_UNAVAILABLE", "the blob folder cannot be used now: Input/output error")
        delete(blobs, key)

    monkeypatch.setattr(kind, "delete", refusing)
    report = collect(stored_world)
    assert (report.blobs_deleted, report.bytes_deleted, report.keys_refused) == (1, len(b"beside it"), 1)
    assert states(stored_world) == {bad: "deleting"}
    assert stored_world.blobs.stat(key_of(good)) is None
    monkeypatch.undo()
    assert (collect(stored_world).blobs_deleted, states(stored_world)) == (1, {})


def test_a_store_that_deletes_nothing_ends_the_run_with_its_reason(
    stored_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(FAILURES_LIMIT + 5):
        orphan(stored_world, f"orphan {n}".encode())
    asked = []

    def refusing(_blobs: BlobStore, key: str) -> None:
        asked.append(key)
        raise Unavailable("STORE_UNAVAILABLE", "the blob folder cannot be used now: Read-only file system")

    monkeypatch.setattr(type(stored_world.blobs), "delete", refusing)
    with pytest.raises(Unavailable, match="Read-only file system"):
        collect(stored_world)
    assert FAILURES_LIMIT <= len(asked) <= 4 * FAILURES_LIMIT, "the client asks again"
