"""Garbage collection without a grace period during pushes and pulls."""

from __future__ import annotations

import threading

import pytest

from registry.digest import Digest
from registry.errors import Conflict
from tests.harness import Harness
from tests.maintenance import collect, expire, findings, plan, states


@pytest.mark.slow
def test_gc_without_a_grace_period_races_pushes_and_pulls(stored_harness: Harness) -> None:
    """Shared blobs, abandoned pushes and a collector without a pause: nothing that was acknowledged is lost."""
    shared = [stored_harness.files() for _ in range(3)]
    failures: list[BaseException] = []
    pushed: set[str] = set()
    done = threading.Event()

    def thread(work: object) -> threading.Thread:
        def run() -> None:
            try:
                work()  # type: ignore[operator]
            except BaseException as e:
                failures.append(e)
                done.set()

        return threading.Thread(target=run)

    def push(worker: int) -> None:
        for round_number in range(6):
            files = {**shared[round_number % 3], "README.md": b"%d" % (round_number // 2)}
            if round_number % 3 == 2:
                expire(stored_harness, plan(stored_harness, stored_harness.files(), f"acme/w{worker}"))
            try:
                stored_harness.push(f"acme/w{worker}", files)
            except Conflict as e:  # nobody else continues it, so this is a loss
                raise AssertionError(f"a push lost its bytes: {e}") from e
            pushed.add(f"acme/w{worker}")

    def pull() -> None:
        while not done.wait(0.02):
            for name in list(pushed):
                resolved = stored_harness.admin.resolve(name)
                for file in resolved.files:
                    with stored_harness.admin.read(file) as chunks:
                        assert Digest.of(b"".join(chunks)) == file.digest

    def collect_forever() -> None:
        while not done.is_set():
            collect(stored_harness)

    background = [thread(pull), thread(collect_forever)]
    pushers = [thread(lambda n=n: push(n)) for n in range(4)]
    for each in [*background, *pushers]:
        each.start()
    for each in pushers:
        each.join()
    done.set()
    for each in background:
        each.join()
    assert failures == []
    collect(stored_harness)
    collect(stored_harness)
    assert findings(stored_harness) == []
    assert list(stored_harness.blobs.list("staging/")) == []
    assert set(states(stored_harness).values()) == {"live"}
