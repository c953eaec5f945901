"""`Task` and `Done`: input and outcome of a claimed job's runner; `Failed` without one; `HeldLease`: its lease."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from registry.api.bases import BaseView
from registry.api.catalog import Resolved
from registry.api.jobs import Claimed, RenewRequest
from registry.client.registry import Registry
from registry.client.transfer.pull import PlannedPulls
from registry.errors import Conflict, Corrupt, Invalid, NotFound, RegistryError, printable
from registry.evaluation.reports import Report
from registry.jobs import Job
from registry.names import AdapterName, Ref
from registry.worker.model.sources import BaseSource
from registry.worker.model_process.client import Pool, ProcessLimits

PROGRESS_LIMIT = 500
RENEWALS_PER_LEASE = 3
"""Renewals in the time of one lease: two may get lost."""
PROGRESS_SECONDS = 0.5
"""Time that progress waits for more, so that quick steps cost one request."""


class Lost(Exception):
    """The job was given to another worker, or was cancelled: drop it."""


class HeldLease:
    """The lease of one job while it runs, renewed by a thread at a third of its length.

    An unreachable server is retried until the lease would have ended. After a loss `on_lost` stops the work at once,
    and nothing of it may be sent: `check` raises.
    """

    def __init__(self, registry: Registry, claimed: Claimed, *, on_lost: Callable[[], None]) -> None:
        self.token = claimed.lease.token
        self._registry = registry
        self._job = claimed.job.id
        self._seconds = claimed.lease.seconds
        self._on_lost = on_lost
        self._progress = ""
        self._lost = threading.Event()
        self._done = threading.Event()
        self._changed = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease of {self._job}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._changed.set()
        self._thread.join()

    def say(self, progress: str) -> None:
        """Set the progress. `Lost`, as of `check`."""
        self.set_progress(progress)
        self.check()

    def set_progress(self, progress: str) -> None:
        """Send the progress soon, at most once in `PROGRESS_SECONDS`. May be called from any thread."""
        progress = printable(progress, PROGRESS_LIMIT)
        if progress != self._progress:
            self._progress = progress
            self._changed.set()

    def check(self) -> None:
        """Raise `Lost` if the lease is lost."""
        if self._lost.is_set():
            raise Lost(self._job)

    def _renew(self) -> None:
        ends = time.monotonic() + self._seconds
        while not self._done.is_set():
            self._changed.wait(self._seconds / RENEWALS_PER_LEASE)
            if self._done.wait(min(PROGRESS_SECONDS, self._seconds / RENEWALS_PER_LEASE)):
                return
            self._changed.clear()
            try:
                lease = self._registry.renew(self._job, RenewRequest(lease_token=self.token, progress=self._progress))
            except (Conflict, NotFound):
                break
            except RegistryError:  # not reachable now; the lease is still valid
                if time.monotonic() >= ends:
                    break
                continue
            ends = time.monotonic() + lease.seconds
        else:
            return
        self._lost.set()
        self._on_lost()


class Failed(Exception):
    """This attempt has no outcome. `final`: no other attempt would have one either."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


@dataclass(frozen=True, slots=True)
class Task:
    """One claimed job with everything that its runner may use. `source`: the job's base on this machine."""

    registry: Registry
    claimed: Claimed
    lease: HeldLease
    pool: Pool
    limits: ProcessLimits
    source: BaseSource | None = None

    @property
    def job(self) -> Job:
        """The claimed job."""
        return self.claimed.job

    @property
    def subject(self) -> Resolved:
        """The version of the job. `Failed` without one."""
        if self.claimed.subject is None:
            raise Failed("the job names no version", final=True)
        return self.claimed.subject

    @property
    def base(self) -> BaseView:
        """The base of the job. `Failed` without one."""
        if self.claimed.base is None:
            raise Failed("the job names no base", final=True)
        return self.claimed.base

    def ready_source(self) -> BaseSource:
        """The job's base on this machine, still as registered."""
        if self.source is None:
            raise Failed(f"the base {self.base.name} is not on this machine")
        if self.base.fingerprint != self.source.fingerprint:
            raise Failed(f"the base {self.base.name} was registered again since this worker read it")
        return self.source

    def demand_unchanged_base(self) -> None:
        """Raise `Failed` if the base's files changed after they were checked: what was computed may be of others."""
        try:
            self.ready_source().demand_unchanged()
        except Invalid as e:
            raise Failed(e.detail) from e

    def pull(self, folder: Path, ref: Ref | None = None, pulls: PlannedPulls | None = None) -> Path:
        """Pull the version of the job, or `ref` as `pulls` planned it, into `folder`, each byte verified."""
        ref = ref or Ref(AdapterName.parse(self.subject.name), self.subject.digest)
        try:
            (pulls or PlannedPulls(self.registry, [ref])).pull(ref, folder, cache=None)
        except Corrupt as e:
            raise Failed(e.detail) from e
        return folder


@dataclass(frozen=True, slots=True)
class Done:
    """A job's outcome: one line for the worker's log, a report of a smoke test, a small result of any kind."""

    message: str
    report: Report | None = None
    result: dict[str, Any] = field(default_factory=dict)
