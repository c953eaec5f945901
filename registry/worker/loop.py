"""Claim, keep the lease, run, report: one job at a time, for the bases that this machine can load.

Invariants
- Only jobs of bases that were found here and checked are claimed, warm bases first.
- A lost lease sends nothing; a stop finishes the running job within its grace, or gives it back as failed.
- A server that is away is waited for; a job's failure never ends the loop.
"""

from __future__ import annotations

import os
import platform
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from registry.api.jobs import BASES_LIMIT, Claimed, ClaimRequest, FailRequest, FinishRequest
from registry.client.registry import Registry
from registry.errors import RegistryError, Unavailable
from registry.worker import job as jobs
from registry.worker.lease import Held, Lost
from registry.worker.model.identify import Inspector, Stopped
from registry.worker.model.sources import BaseSource, Sources
from registry.worker.model_process.client import ProcessLimits
from registry.worker.model_process.pool import Pool
from registry.worker.task import Failed, Task

IDLE_SECONDS = (0.5, 5.0)
"""How long an idle worker waits before it asks again: it begins with the first and doubles up to the second."""
GRACE_SECONDS = 10.0
"""How long a running job may go on after the worker was told to stop."""
NO_LONGER_OURS = frozenset({"LEASE_LOST", "JOB_UNKNOWN"})
"""What the registry says of a job that was given to another, cancelled, or deleted with its adapter."""


@dataclass(slots=True)
class RunSummary:
    """What one run of a worker did."""

    done: int = 0
    failed: int = 0
    base_loads: int = 0


class Worker:
    """A client that owns a base (and some day a GPU). `say` gets one line for each thing that happens."""

    def __init__(
        self, registry: Registry, sources: Sources, *, say: Callable[[str], None], limits: ProcessLimits | None = None,
        pool: Pool | None = None, name: str = "", grace_seconds: float = GRACE_SECONDS,
    ) -> None:  # fmt: skip
        self.tally = RunSummary()
        self._registry = registry
        self._sources = sources
        self._say = say
        self._limits = limits or ProcessLimits()
        self._pool = pool or Pool()
        self._name = name or f"{platform.node()}:{os.getpid()}"
        self._grace = grace_seconds
        self._stopping = threading.Event()
        self._told: set[str] = set()
        self._inspector = Inspector(registry, say=say, stopping=self._stopping.is_set)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.close()

    def stop(self) -> None:
        """End after the running job, or after the grace, whichever is first. May be called from a signal handler."""
        if self._stopping.is_set():
            self._pool.interrupt()
            return
        self._stopping.set()
        timer = threading.Timer(self._grace, self._pool.interrupt)
        timer.daemon = True
        timer.start()

    def run(self, *, once: bool = False) -> RunSummary:
        """Work until `stop`, or with `once` until no job is left that this worker can do."""
        pause = IDLE_SECONDS[0]
        while not self._stopping.is_set():
            try:
                worked = self._round()
            except Unavailable as e:
                if once:
                    raise
                self._say(f"waiting for the registry: {e.detail}")
                worked = False
            if worked:
                pause = IDLE_SECONDS[0]
            elif once:
                break
            else:
                self._stopping.wait(pause * random.uniform(0.8, 1.2))  # noqa: S311 - so that workers do not march in step
                pause = min(2 * pause, IDLE_SECONDS[1])
        self.tally.base_loads = self._pool.base_loads
        return self.tally

    def _round(self) -> bool:
        """Claim one job and do it; False when there is none."""
        try:
            usable = self._sources.demand(self._registry.bases().items, self._inspector.problem)
        except Stopped:
            return False
        sources = {source.name: source for source in usable}
        for message in self._sources.problems.values():
            if message not in self._told:
                self._told.add(message)
                self._say(message)
        claimed = self._claim(sources)
        if claimed is None:
            return False
        self._work(claimed, sources.get(claimed.job.base))
        return True

    def _claim(self, sources: Mapping[str, BaseSource]) -> Claimed | None:
        """A job for a base that is here, warm bases first; else one that needs none."""
        bound = [kind for kind in jobs.RUNNERS if kind not in jobs.BASELESS]
        free = [kind for kind in jobs.RUNNERS if kind in jobs.BASELESS]
        warm = [name for name in self._pool.warm if name in sources]
        names = [*warm, *(name for name in sources if name not in warm)]
        claimed = None
        if names:
            claimed = self._registry.claim(ClaimRequest(worker=self._name, kinds=bound, bases=names[:BASES_LIMIT]))
        if claimed is None and free:
            claimed = self._registry.claim(ClaimRequest(worker=self._name, kinds=free))
        return claimed

    def _work(self, claimed: Claimed, source: BaseSource | None) -> None:
        job = claimed.job
        label = job.subject
        try:
            with Held(self._registry, claimed, on_lost=self._pool.stop_child) as lease:
                done = jobs.run(Task(self._registry, claimed, lease, self._pool, self._limits, source))
                result = done.result | {"says": done.message}
                self._registry.finish(job.id, FinishRequest(lease_token=lease.token, report=done.report, result=result))
        except Exception as e:  # a bug or a full disk: this job fails, the next one is tried
            if isinstance(e, Lost) or getattr(e, "code", "") in NO_LONGER_OURS:
                self._say(f"{label}: the job is no longer ours ({e}); dropped")
            else:
                self._fail(claimed, label, e)
            return
        self.tally.done += 1
        self._say(f"{label}: {done.message}")

    def _fail(self, claimed: Claimed, label: str, error: Exception) -> None:
        self.tally.failed += 1
        expected = isinstance(error, Failed | RegistryError)
        message = (str(error) if expected else f"{type(error).__name__}: {error}")[:4000]
        final = isinstance(error, Failed) and error.final
        self._say(f"{label}: attempt {claimed.job.attempt} failed: {message}")
        try:
            self._registry.fail(
                claimed.job.id, FailRequest(lease_token=claimed.lease.token, error=message, final=final)
            )
        except RegistryError as e:  # the lease will run out, which says the same
            self._say(f"{label}: could not be given back: {e.detail}")
