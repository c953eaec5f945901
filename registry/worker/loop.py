"""Claim, renew the lease, run, report: one job at a time, for the bases that this machine can load, warm bases first.

After a lost lease nothing is sent. A stop finishes the running job within its grace period, or fails it. The loop waits
for an unreachable server, and goes on after a failed job.
"""

import os
import platform
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from registry.api.jobs import BASES_LIMIT, Claimed, ClaimRequest, FailRequest, FinishRequest
from registry.client.registry import Registry
from registry.errors import Corrupt, NotFound, RegistryError, TooLarge, Unavailable, printable
from registry.jobs import KINDS_WITHOUT_BASE, Kind, State, backoff_seconds
from registry.worker import smoke_job
from registry.worker.conversions import runner as conversions
from registry.worker.merge import runner as merges
from registry.worker.model.identify import Inspector, Stopped
from registry.worker.model.sources import BaseSource, Sources
from registry.worker.model_process.client import Pool, ProcessLimits
from registry.worker.task import Done, Failed, HeldLease, Lost, Task

RUNNERS: Mapping[Kind, Callable[[Task], Done]] = {
    Kind.SMOKE_TEST: smoke_job.smoke_test,
    Kind.MERGE: merges.merge,
    Kind.FUSE: merges.fuse,
    Kind.CONVERT: conversions.convert,
    Kind.CONVERT_ON_BASE: conversions.convert,
}
"""The kinds of job that are claimed."""
IDLE_SECONDS = (0.5, 5.0)
"""The pause of an idle worker: it starts with the first and doubles up to the second."""
GRACE_SECONDS = 10.0
"""Time for a running job after a stop."""
RETRY_SECONDS = 30.0
"""Time that a run with `once` waits for a failed job of its own after the job's pause."""
MESSAGE_LIMIT, ERROR_LIMIT = 2000, 4000
NO_BASE = "no base can be loaded here, so only merges and conversions run; name a folder: --base NAME=DIR"
LOST_CODES = frozenset({"LEASE_LOST", "JOB_UNKNOWN"})
"""Errors for a job that was given to another worker, cancelled, or deleted with its adapter."""


@dataclass(slots=True)
class RunSummary:
    """What one run of a worker did. `unfinished`: failed jobs whose next attempt it did not make."""

    done: int = 0
    failed: int = 0
    base_loads: int = 0
    unfinished: int = 0


class Worker:
    """A client of the registry that claims and does jobs. `say` gets one line for each event."""

    def __init__(
        self, registry: Registry, sources: Sources, *, say: Callable[[str], None],
        warn: Callable[[str], None] | None = None, limits: ProcessLimits | None = None,
        pool: Pool | None = None, name: str = "", grace_seconds: float = GRACE_SECONDS,
    ) -> None:  # fmt: skip
        self.summary = RunSummary()
        self._registry = registry
        self._sources = sources
        self._say, self._warn = say, warn or say
        self._limits = limits or ProcessLimits()
        self._pool = pool or Pool()
        self._name = name or f"{platform.node()}:{os.getpid()}"
        self._grace = grace_seconds
        self._stopping = threading.Event()
        self._reported: set[str] = set()
        self._retries: dict[str, float] = {}
        self._inspector = Inspector(registry, say=say, stopping=self._stopping.is_set)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.close()

    def stop(self) -> None:
        """Stop after the running job or the grace period, whichever is first. May be called from a signal handler."""
        if self._stopping.is_set():
            self._pool.interrupt()
            return
        self._stopping.set()
        timer = threading.Timer(self._grace, self._pool.interrupt)
        timer.daemon = True
        timer.start()

    def run(self, *, once: bool = False) -> RunSummary:
        """Work until `stop`; with `once`, until no job is left that this worker can do, its own retries included.

        Raises what prevents further work; `summary` says what was done before. With `once`, while a failed job waits,
        the error is logged instead.
        """
        try:
            self._rounds(once=once)
        except RegistryError as e:
            if not (once and self._retries):
                raise
            self._warn(f"ending before the next attempt of a failed job: {e.detail}")
        finally:
            self.summary.base_loads = self._pool.base_loads
            self.summary.unfinished = len(self._retries)
        return self.summary

    def _rounds(self, *, once: bool) -> None:
        pause, is_away = IDLE_SECONDS[0], False
        while not self._stopping.is_set():
            try:
                worked = self._round()
                if is_away:
                    self._warn("the registry responds again")
                is_away = False
            except (Unavailable, Corrupt) as e:  # a wrong response may be another's fault, and be right in a moment
                if once:
                    raise
                if not is_away:
                    self._warn(f"waiting for the registry: {e.detail}")
                worked, is_away = False, True
            if worked:
                pause = IDLE_SECONDS[0]
            elif once and not self._awaits_retry():
                break
            else:
                self._stopping.wait(pause * random.uniform(0.8, 1.2))  # noqa: S311 - spreads the workers' requests
                pause = min(2 * pause, IDLE_SECONDS[1])

    def _awaits_retry(self) -> bool:
        """Whether a job that failed here is queued again, and its pause was not over long ago."""
        for job_id in list(self._retries):
            try:
                queued = self._registry.job(job_id).state is State.QUEUED
            except NotFound:
                queued = False
            if not queued:  # another worker has it, or it was cancelled
                del self._retries[job_id]
        return any(time.monotonic() < ends for ends in self._retries.values())

    def _round(self) -> bool:
        """Claim one job and do it; False when there is none."""
        try:
            usable = self._sources.usable(self._registry.bases(modules=False).items, self._inspector.problem)
        except Stopped:
            return False
        sources = {source.name: source for source in usable}
        for message in [*self._sources.problems.values(), *([] if sources else [NO_BASE])]:
            if message not in self._reported:
                self._reported.add(message)
                self._say(message)
        claimed = self._claim(sources)
        if claimed is None:
            return False
        self._work(claimed, sources.get(claimed.job.base))
        return True

    def _claim(self, sources: Mapping[str, BaseSource]) -> Claimed | None:
        """Claim a job for a base that is here, warm bases first; else one that needs no base."""
        warm = [name for name in self._pool.warm if name in sources]
        names = [*warm, *(name for name in sources if name not in warm)][:BASES_LIMIT]
        on_base = [kind for kind in RUNNERS if kind not in KINDS_WITHOUT_BASE]
        claimed = None
        if names:
            claimed = self._registry.claim(ClaimRequest(worker=self._name, kinds=on_base, bases=names))
        return claimed or self._registry.claim(ClaimRequest(worker=self._name, kinds=list(KINDS_WITHOUT_BASE)))

    def _work(self, claimed: Claimed, source: BaseSource | None) -> None:
        job = claimed.job
        label = job.subject
        self._retries.pop(job.id, None)
        try:
            with HeldLease(self._registry, claimed, on_lost=self._pool.stop_child) as lease:
                run = RUNNERS[job.kind](Task(self._registry, claimed, lease, self._pool, self._limits, source))
                result = run.result | {"message": printable(run.message, MESSAGE_LIMIT)}
                self._registry.finish(job.id, FinishRequest(lease_token=lease.token, report=run.report, result=result))
        except Exception as e:  # a bug or a full disk: this job fails, the next one is tried
            if isinstance(e, Lost) or getattr(e, "code", "") in LOST_CODES:
                self._warn(f"{label}: the lease is lost ({e}); the job is dropped")
            else:
                self._fail(claimed, label, e)
            return
        self.summary.done += 1
        self._say(f"{label}: {run.message}")

    def _fail(self, claimed: Claimed, label: str, error: Exception) -> None:
        self.summary.failed += 1
        expected = isinstance(error, Failed | RegistryError)
        message = printable(str(error) if expected else f"{type(error).__name__}: {error}", ERROR_LIMIT)
        final = isinstance(error, TooLarge) or (isinstance(error, Failed) and error.final)  # another would be as large
        self._warn(f"{label}: attempt {claimed.job.attempt} failed: {message}")
        try:
            request = FailRequest(lease_token=claimed.lease.token, error=message, final=final)
            job = self._registry.fail(claimed.job.id, request)
            if job.state is State.QUEUED:
                self._retries[job.id] = time.monotonic() + backoff_seconds(job.attempt) + RETRY_SECONDS
        except RegistryError as e:  # the lease runs out, which has the same effect
            self._warn(f"{label}: the failure could not be reported: {e.detail}")
