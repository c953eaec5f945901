"""A store that does not answer holds up those who need it, and nobody else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from registry.api.push import PushRequest
from registry.digest import Digest
from registry.server.push import background, inspect
from registry.server.routes.threads import STORE_THREADS
from registry.server.storage.blobs import BlobWriter, Link, Stat
from tests.memory_blobs import MemoryBlobs
from tests.world import World, upload

PATIENCE_SECONDS = 60
"""More than anything here takes; a server that is held up would take for ever."""


class Hanging(MemoryBlobs):
    """While `hangs` is set, writes and looks wait until it answers again, as many as there may be."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs, self.answers = threading.Event(), threading.Event()
        self.waiting = threading.Semaphore(0)
        self.at_link: Any = None

    def wait(self) -> None:
        if self.hangs.is_set():
            self.waiting.release()
            assert self.answers.wait(PATIENCE_SECONDS)

    def stat(self, key: str) -> Stat | None:
        self.wait()
        return super().stat(key)

    def open_writer(self, key: str, *, limit_bytes: int) -> BlobWriter:
        sink = super().open_writer(key, limit_bytes=limit_bytes)
        write = sink.write

        def writing(chunk: Any) -> None:
            self.wait()
            write(chunk)

        sink.write = writing  # type: ignore[method-assign]
        return sink

    def presign(self, *_args: Any, **_options: Any) -> Link | None:
        if self.at_link is not None:
            self.at_link()
        return None


@pytest.fixture
def blobs() -> Iterator[Hanging]:
    blobs = Hanging()
    yield blobs
    blobs.answers.set()


@pytest.fixture
def world(database_url: str, blobs: Hanging) -> Iterator[World]:
    with World(database_url, blobs=blobs) as world:
        world.add_base()
        yield world


def test_who_needs_no_bytes_is_answered_while_more_pushes_wait_than_there_are_threads(
    world: World, blobs: Hanging
) -> None:
    manifests = [world.manifest(world.files()) for _ in range(STORE_THREADS + 20)]
    pushes = [world.admin.plan_push(f"acme/a{i}", PushRequest(manifest=m)) for i, m in enumerate(manifests)]
    blobs.hangs.set()
    with ThreadPoolExecutor(len(pushes) + 1) as pool:
        again = [
            pool.submit(world.admin.plan_push, f"acme/a{i}", PushRequest(manifest=manifest))
            for i, manifest in enumerate(manifests)
        ]
        for _ in range(STORE_THREADS):
            assert blobs.waiting.acquire(timeout=PATIENCE_SECONDS)
        try:
            assert pool.submit(world.admin.adapters).result(PATIENCE_SECONDS).items == []
            assert pool.submit(world.admin.health).result(PATIENCE_SECONDS).status == "ok"
        finally:
            blobs.answers.set()
        assert [found.result().push_id for found in again] == [push.push_id for push in pushes]


def test_an_upload_that_the_store_does_not_take_holds_up_no_event_loop(world: World, blobs: Hanging) -> None:
    files = world.files()
    plan = world.admin.plan_push("acme/support", PushRequest(manifest=world.manifest(files)))
    upload = max(plan.uploads, key=lambda upload: upload.size_bytes)
    data = next(data for data in files.values() if Digest.of(data) == upload.digest)
    blobs.hangs.set()
    with ThreadPoolExecutor(2) as pool:
        sent = pool.submit(world.admin.upload, upload, lambda: iter([data]))
        assert blobs.waiting.acquire(timeout=PATIENCE_SECONDS)
        try:
            assert pool.submit(world.admin.adapters).result(PATIENCE_SECONDS).items == []
        finally:
            blobs.answers.set()
        sent.result()


def test_a_plan_keeps_no_connection_to_the_database_while_it_asks_the_store(world: World, blobs: Hanging) -> None:
    held: list[int] = []
    blobs.at_link = lambda: held.append(world.engine.pool.checkedout())  # type: ignore[attr-defined]
    manifest = world.manifest(world.files())
    first = world.admin.plan_push("acme/support", PushRequest(manifest=manifest))
    assert world.admin.plan_push("acme/support", PushRequest(manifest=manifest)).push_id == first.push_id
    assert held == [0] * 2 * len(first.uploads)


def test_a_commit_that_is_asked_for_again_while_it_is_done_is_not_done_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes long because the store is slow: reading everything once more at the same time would make it slower."""
    files = world.files()
    plan = world.admin.plan_push("acme/support", PushRequest(manifest=world.manifest(files)))
    upload(world.admin, plan, files)
    came = threading.Semaphore(0)
    read: list[Any] = []
    turn, verified = background.turn, inspect.verified

    def coming(*words: Any) -> Any:
        came.release()
        return turn(*words)

    def reading(*words: Any) -> Any:
        read.append(1)
        for _ in range(2):
            assert came.acquire(timeout=PATIENCE_SECONDS)
        return verified(*words)

    monkeypatch.setattr(background, "turn", coming)
    monkeypatch.setattr(inspect, "verified", reading)
    with ThreadPoolExecutor(2) as pool:
        pushed = [pool.submit(world.admin.commit_push, plan.push_id) for _ in range(2)]
        assert sorted(found.result().created for found in pushed) == [False, True]
    assert read == [1]
