"""Many clients at once on a real server: equal pushes, different pushes, pushes and pulls while garbage is collected.

Each answers what went wrong; an empty list is the only good answer.

Example
    assert races.equal(stage, "acme/same", 64) == []
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from registry.api.push import Pushed
from registry.client import push
from registry.errors import RegistryError
from registry.names import AdapterName
from tests.faults.stage import BASE, Promise, Stage


def equal(stage: Stage, name: str, clients: int, *, seed: int = 0) -> list[str]:
    """The same bytes by all: one version, made once."""
    folder = stage.adapter(name, seed, rank=2)
    with stage.server.running(), stage.client() as client:
        pushed = _all_at_once(lambda _: _push(stage, folder, name), range(clients))
        found = [str(e) for e in pushed if isinstance(e, Exception)]
        answers = [p for p in pushed if isinstance(p, Pushed)]
        if sum(p.created for p in answers) != 1 or len({p.version.digest for p in answers}) != 1:
            found.append(f"{name}: {sum(p.created for p in answers)} of {len(answers)} made it")
        stage.promises.append(Promise(AdapterName.parse(name), answers[0].version.digest, folder))
        return found + stage.all_violations(client)


def different(stage: Stage, name: str, clients: int, *, seed: int = 0) -> list[str]:
    """Other bytes by each: as many versions, numbered without a gap."""
    folders = [stage.adapter(name, seed + i, rank=2) for i in range(clients)]
    with stage.server.running(), stage.client() as client:
        pushed = _all_at_once(lambda folder: _push(stage, folder, name), folders)
        found = [str(e) for e in pushed if isinstance(e, Exception)]
        answers = [p for p in pushed if isinstance(p, Pushed)]
        numbers = sorted(p.version.number for p in answers)
        if numbers != list(range(1, clients + 1)) or not all(p.created for p in answers):
            found.append(f"{name}: numbers {numbers}")
        both = zip(pushed, folders, strict=True)
        stage.promises += [
            Promise(AdapterName.parse(name), p.version.digest, folder) for p, folder in both if isinstance(p, Pushed)
        ]
        return found + stage.all_violations(client)


def churn(stage: Stage, prefix: str, seconds: float, *, seed: int = 0) -> list[str]:
    """Pushers that share blobs and give up half-way, pullers, and garbage collection at no grace without a pause."""
    found: list[str] = []
    until = time.monotonic() + seconds
    seeds = itertools.count(seed)
    over = threading.Event()
    with stage.server.running(), ThreadPoolExecutor(8) as pool, stage.client() as client:
        workers: list[Callable[[], None]] = [
            *[lambda: _push_next(stage, prefix, next(seeds))] * 3,
            lambda: _give_up(stage, prefix, next(seeds)),
            *[lambda: found.extend(_pull_any(stage))] * 2,
            lambda: _collect(stage),
            lambda: stage.expire_pushes(of=f"{prefix}-left"),
        ]

        def work(step: Callable[[], None]) -> None:
            while time.monotonic() < until and not over.is_set():
                try:
                    step()
                except RegistryError as e:
                    found.append(f"{e.code}: {e.detail}")
                    over.set()

        list(pool.map(work, workers))
        return found + stage.all_violations(client)


# ------------------------------------------------------------------ steps
def _all_at_once(work: Callable[[Any], Any], items: Any) -> list[Any]:
    todo = list(items)
    start = threading.Barrier(len(todo))

    def one(item: Any) -> Any:
        start.wait()
        try:
            return work(item)
        except RegistryError as e:
            return e

    with ThreadPoolExecutor(len(todo)) as pool:
        return list(pool.map(one, todo))


def _push(stage: Stage, folder: Path, name: str) -> Pushed:
    with stage.client() as client:
        return push.push_folder(client, folder, AdapterName.parse(name), base=BASE.name)


def _push_next(stage: Stage, prefix: str, seed: int) -> None:
    folder = stage.adapter(f"{prefix}-{seed % 3}", seed % 7, rank=1 + seed % 5)
    with stage.client() as client:
        stage.push(client, folder, f"{prefix}-{seed % 3}")


def _give_up(stage: Stage, prefix: str, seed: int) -> None:
    """Send the bytes of a version that others push, too, and go away."""
    folder = stage.adapter(f"{prefix}-left", seed % 7, rank=1 + seed % 5)
    with stage.client() as client:
        stage.send_only(client, folder, f"{prefix}-left")


def _pull_any(stage: Stage) -> list[str]:
    promises = stage.promises[-5:]
    with stage.client() as client:
        return [problem for promise in promises[:1] for problem in stage.broken(client, promise)]


def _collect(stage: Stage) -> None:
    with stage.client() as client:
        stage.collect(client)
