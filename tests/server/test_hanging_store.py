"""A store that does not respond delays only the requests that need it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event

from registry.api.transfer import PushRequest
from registry.digest import Digest
from registry.server.http.admission import REQUESTS_EACH
from registry.server.storage.blobs import BlobWriter, Link, Stat
from tests.bulk import plan_push
from tests.harness import Harness, send_blob
from tests.memory_blobs import MemoryBlobs

WAIT_SECONDS = 60
"""More than anything here takes; a blocked server would never respond."""


class HangingBlobs(MemoryBlobs):
    """While `hangs` is set, writes and look-ups wait for `resumes`."""

    is_remote = True  # else a plan looks nothing up

    def __init__(self) -> None:
        super().__init__()
        self.hangs, self.resumes = threading.Event(), threading.Event()
        self.waiting = threading.Semaphore(0)
        self.on_presign: Any = None

    def wait(self) -> None:
        if self.hangs.is_set():
            self.waiting.release()
            assert self.resumes.wait(WAIT_SECONDS)

    def stat(self, key: str) -> Stat | None:
        self.wait()
        return super().stat(key)

    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        for chunk in super().open(key, start, length):
            self.wait()
            yield chunk

    def open_writer(self, key: str, *, limit_bytes: int) -> BlobWriter:
        sink = super().open_writer(key, limit_bytes=limit_bytes)
        write = sink.write

        def writing(chunk: Any) -> None:
            self.wait()
            write(chunk)

        sink.write = writing  # type: ignore[method-assign]
        return sink

    def presign_upload(self, *_args: Any, **_options: Any) -> Link | None:
        if self.on_presign is not None:
            self.on_presign()
        return None


@pytest.fixture
def blobs() -> Iterator[HangingBlobs]:
    blobs = HangingBlobs()
    yield blobs
    blobs.resumes.set()


@pytest.fixture
def harness(database_url: str, blobs: HangingBlobs) -> Iterator[Harness]:
    with Harness(database_url, blobs=blobs) as harness:
        harness.add_base()
        yield harness


def test_requests_without_bytes_are_served_while_pushes_wait_for_the_store(
    harness: Harness, blobs: HangingBlobs
) -> None:
    manifests = [harness.manifest(harness.files()) for _ in range(REQUESTS_EACH + 20)]
    pushes = [plan_push(harness.admin, f"acme/a{i}", PushRequest(manifest=m)) for i, m in enumerate(manifests)]
    other = harness.actor("pull")
    blobs.hangs.set()
    with ThreadPoolExecutor(len(pushes) + 1) as pool:
        again = [
            pool.submit(plan_push, harness.admin, f"acme/a{i}", PushRequest(manifest=manifest))
            for i, manifest in enumerate(manifests)
        ]
        for _ in range(REQUESTS_EACH):
            assert blobs.waiting.acquire(timeout=WAIT_SECONDS)
        try:
            assert pool.submit(other.adapters).result(WAIT_SECONDS).items == []
            assert pool.submit(harness.admin.health).result(WAIT_SECONDS).status == "ok"
        finally:
            blobs.resumes.set()
        assert [future.result().push_id for future in again] == [push.push_id for push in pushes]


@pytest.mark.security
def test_one_tenant_does_not_get_all_threads_of_the_store(harness: Harness, blobs: HangingBlobs) -> None:
    """Two tokens of one namespace are one tenant."""
    pushers = [harness.actor("push", namespaces=[namespace]) for namespace in ("acme", "acme", "other")]
    plans = []
    for number, pusher in enumerate(pushers):
        name = f"{'other' if number == 2 else 'acme'}/a{number}"
        request = PushRequest(manifest=harness.manifest(harness.files()))
        plan_push(pusher, name, request)
        plans.append(partial(plan_push, pusher, name, request))
    blobs.hangs.set()
    with ThreadPoolExecutor(3 * REQUESTS_EACH) as pool:
        for plan in plans[:2]:
            for _ in range(REQUESTS_EACH):
                pool.submit(plan)
        for _ in range(REQUESTS_EACH):
            assert blobs.waiting.acquire(timeout=WAIT_SECONDS)
        while blobs.waiting.acquire(timeout=0.5):
            pass
        pool.submit(plans[2])
        assert blobs.waiting.acquire(timeout=WAIT_SECONDS)
        blobs.resumes.set()


def test_an_upload_to_a_hanging_store_does_not_block_the_event_loop(harness: Harness, blobs: HangingBlobs) -> None:
    files = harness.files()
    plan = plan_push(harness.admin, "acme/support", PushRequest(manifest=harness.manifest(files)))
    upload = max(plan.uploads, key=lambda upload: upload.size_bytes)
    data = next(data for data in files.values() if Digest.of(data) == upload.digest)
    blobs.hangs.set()
    with ThreadPoolExecutor(2) as pool:
        sent = pool.submit(send_blob, harness.admin, upload, data)
        assert blobs.waiting.acquire(timeout=WAIT_SECONDS)
        try:
            assert pool.submit(harness.admin.adapters).result(WAIT_SECONDS).items == []
        finally:
            blobs.resumes.set()
        sent.result()


def test_a_plan_holds_no_database_connection_while_it_waits_for_the_store(
    harness: Harness, blobs: HangingBlobs
) -> None:
    holders: dict[Any, int] = {}
    """Each connection that is checked out now, and the thread that did it. A request runs in one thread."""
    event.listen(harness.engine, "checkout", lambda _, record, _proxy: holders.update({record: threading.get_ident()}))
    event.listen(harness.engine, "checkin", lambda _, record: holders.pop(record, None))
    connections: list[int] = []
    blobs.on_presign = lambda: connections.append(list(holders.values()).count(threading.get_ident()))
    manifest = harness.manifest(harness.files())
    first = plan_push(harness.admin, "acme/support", PushRequest(manifest=manifest))
    assert plan_push(harness.admin, "acme/support", PushRequest(manifest=manifest)).push_id == first.push_id
    assert connections == [0] * 2 * len(first.uploads)
