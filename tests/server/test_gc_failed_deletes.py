"""Garbage collection of a store that fails to delete: one key stops nothing, a broken store fails the request."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from registry.api import PREFIX
from registry.errors import Unavailable
from registry.server.maintenance.gc import FAILURES_LIMIT
from registry.server.storage.blobs import BlobStore, key_of
from tests.harness import URL, Harness
from tests.maintenance import collect, orphan, states


def test_a_key_that_cannot_be_deleted_does_not_stop_the_run(
    stored_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = orphan(stored_harness, b"on a bad sector"), orphan(stored_harness, b"beside it")
    kind: Any = type(stored_harness.blobs)
    delete = kind.delete

    def failing(blobs: BlobStore, key: str) -> None:
        if key == key_of(bad):
            raise Unavailable("STORE_UNAVAILABLE", "cannot use the blob folder: Input/output error")
        delete(blobs, key)

    monkeypatch.setattr(kind, "delete", failing)
    report = collect(stored_harness)
    assert (report.blobs_deleted, report.bytes_deleted, report.keys_refused) == (1, len(b"beside it"), 1)
    assert states(stored_harness) == {bad: "deleting"}
    assert stored_harness.blobs.stat(key_of(good)) is None
    monkeypatch.undo()
    assert (collect(stored_harness).blobs_deleted, states(stored_harness)) == (1, {})


def test_a_store_that_deletes_nothing_fails_the_run(stored_harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(FAILURES_LIMIT + 5):
        orphan(stored_harness, f"orphan {n}".encode())
    attempts = []

    def failing(_blobs: BlobStore, key: str) -> None:
        attempts.append(key)
        raise Unavailable("STORE_UNAVAILABLE", "cannot use the blob folder: Read-only file system")

    monkeypatch.setattr(type(stored_harness.blobs), "delete", failing)
    with httpx.Client(transport=stored_harness.transport, base_url=URL) as http:
        headers = {"Authorization": f"Bearer {stored_harness.secret}"}
        response = http.post(f"{PREFIX}/gc", json={"grace_seconds": 0}, headers=headers)
    assert (response.status_code, "Read-only file system" in response.json()["detail"]) == (503, True)
    assert len(attempts) == FAILURES_LIMIT
