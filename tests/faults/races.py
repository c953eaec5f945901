"""Many clients at once on a real server: equal pushes, different pushes, pushes and pulls during garbage collection.

Each function returns the violations.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.api.transfer import PushResult
from registry.client.transfer import push
from registry.errors import RegistryError, Unavailable
from registry.names import AdapterName
from tests.faults.deployment import BASE, PUSHES_LIMIT, AcknowledgedPush, Deployment

GROWTH_LIMIT = 1.1


@dataclass
class Progress:
    """What the clients of a race have done so far. `repeated`: pushes whose response did not come."""

    acknowledged: int = 0
    repeated: int = 0


def equal(deployment: Deployment, name: str, clients: int, *, seed: int = 0) -> list[str]:
    """Push the same bytes from all clients: one version, created once."""
    folder = deployment.adapter(name, seed, rank=2)
    progress = Progress()
    with deployment.server.running(), deployment.client() as client:
        pushed = _all_at_once(lambda _: _push(deployment, folder, name, progress), range(clients))
        errors = [str(e) for e in pushed if isinstance(e, Exception)]
        responses = [p for p in pushed if isinstance(p, PushResult)]
        created = sum(p.created for p in responses)
        if not min(1, clients - progress.repeated) <= created <= 1 or len({p.version.digest for p in responses}) != 1:
            errors.append(f"{name}: {created} of {len(responses)} made it")
        if [version.number for version in client.versions(name).items] != [1]:
            errors.append(f"{name}: has more than one version")
        deployment.acknowledged.append(AcknowledgedPush(AdapterName.parse(name), responses[0].version.digest, folder))
        return errors + deployment.all_violations(client)


def different(deployment: Deployment, name: str, clients: int, *, seed: int = 0) -> list[str]:
    """Push other bytes from each client: as many versions, numbered without a gap."""
    folders = [deployment.adapter(name, seed + i, rank=2) for i in range(clients)]
    progress = Progress()
    with deployment.server.running(), deployment.client() as client:
        pushed = _all_at_once(lambda folder: _push(deployment, folder, name, progress), folders)
        errors = [str(e) for e in pushed if isinstance(e, Exception)]
        responses = [p for p in pushed if isinstance(p, PushResult)]
        numbers = sorted(p.version.number for p in responses)
        created = sum(p.created for p in responses)
        if numbers != list(range(1, clients + 1)) or not clients - progress.repeated <= created <= clients:
            errors.append(f"{name}: numbers {numbers}, {created} of them created")
        for response, folder in zip(pushed, folders, strict=True):
            if isinstance(response, PushResult):
                digest = response.version.digest
                deployment.acknowledged.append(AcknowledgedPush(AdapterName.parse(name), digest, folder))
        return errors + deployment.all_violations(client)


def churn(deployment: Deployment, prefix: str, seconds: float, *, seed: int = 0) -> list[str]:
    """Push shared blobs, abandon pushes, pull, and collect without a grace period, all at once."""
    with deployment.server.running(), deployment.client() as client:
        return _churn(deployment, prefix, seconds, seed) + deployment.all_violations(client)


def churn_twice(deployment: Deployment, prefix: str, seconds: float) -> list[str]:
    """I18: after the second of two equal loads, the server has the memory and descriptors it had after the first."""
    with deployment.server.running(), deployment.client() as client:
        problems = _churn(deployment, prefix, seconds, 0) + deployment.all_violations(client)
        before = _resources(deployment.server.pid)
        problems += _churn(deployment, prefix, seconds, 0) + deployment.all_violations(client)
        after = _resources(deployment.server.pid)
    grown = [kind for kind in before if after[kind] > before[kind] * GROWTH_LIMIT]
    return problems + [f"I18: {kind} went from {before[kind]} to {after[kind]}" for kind in grown]


def _resources(pid: int) -> dict[str, int]:
    """The resident memory of a process in bytes, and its open descriptors."""
    process = Path("/proc", str(pid))
    pages = int((process / "statm").read_text().split()[1])
    return {"memory": pages * os.sysconf("SC_PAGE_SIZE"), "descriptors": len(list((process / "fd").iterdir()))}


def _churn(deployment: Deployment, prefix: str, seconds: float, seed: int) -> list[str]:
    problems: list[str] = []
    until = time.monotonic() + seconds
    seeds = itertools.count(seed)
    over = threading.Event()
    with ThreadPoolExecutor(8) as pool:
        workers: list[Callable[[], None]] = [
            *[lambda: _push_next(deployment, prefix, next(seeds))] * 3,
            lambda: _give_up(deployment, prefix, next(seeds)),
            *[lambda: problems.extend(_pull_any(deployment))] * 2,
            lambda: _collect(deployment),
            lambda: deployment.expire_pushes(of=f"{prefix}-left"),
        ]

        def work(step: Callable[[], None]) -> None:
            while time.monotonic() < until and not over.is_set():
                try:
                    step()
                except RegistryError as e:
                    problems.append(f"{e.code}: {e.detail}")
                    over.set()

        list(pool.map(work, workers))
    return problems


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


def _push(deployment: Deployment, folder: Path, name: str, progress: Progress) -> PushResult:
    """Push until it is acknowledged, however long a slow machine takes, while any client of the race gets on."""
    vain = 0
    while True:
        before = progress.acknowledged
        try:
            with deployment.client() as client:
                pushed = push.push_folder(client, folder, AdapterName.parse(name), base=BASE.name)
        except Unavailable:
            vain = vain + 1 if progress.acknowledged == before else 0
            progress.repeated += 1
            if vain >= PUSHES_LIMIT:
                raise
        else:
            progress.acknowledged += 1
            return pushed


def _push_next(deployment: Deployment, prefix: str, seed: int) -> None:
    folder = deployment.adapter(f"{prefix}-{seed % 3}", seed % 7, rank=1 + seed % 5)
    with deployment.client() as client:
        deployment.push(client, folder, f"{prefix}-{seed % 3}")


def _give_up(deployment: Deployment, prefix: str, seed: int) -> None:
    """Send the bytes of a version that others push as well, and abandon the push."""
    folder = deployment.adapter(f"{prefix}-left", seed % 7, rank=1 + seed % 5)
    with deployment.client() as client:
        deployment.send_only(client, folder, f"{prefix}-left")


def _pull_any(deployment: Deployment) -> list[str]:
    acknowledged = deployment.acknowledged[-5:]
    with deployment.client() as client:
        return [problem for each in acknowledged[:1] for problem in deployment.broken(client, each)]


def _collect(deployment: Deployment) -> None:
    with deployment.client() as client:
        deployment.collect(client)
