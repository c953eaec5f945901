"""`Task` and `Done`: input and outcome of a claimed job's runner; `Failed` when an attempt has no outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry.api.bases import BaseView
from registry.api.catalog import Resolved
from registry.api.jobs import Claimed
from registry.client import pull as pulling
from registry.client.registry import Registry
from registry.errors import Corrupt
from registry.evaluation.reports import Report
from registry.jobs import Job
from registry.names import AdapterName, Ref
from registry.worker.lease import HeldLease
from registry.worker.model.sources import BaseSource
from registry.worker.model_process.client import Pool, ProcessLimits


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

    def pull(self, folder: Path, subject: Resolved | None = None) -> Path:
        """Pull the version into `folder`, each byte verified against its manifest."""
        subject = subject or self.subject
        try:
            pulling.pull(self.registry, Ref(AdapterName.parse(subject.name), subject.digest), folder, cache=None)
        except Corrupt as e:
            raise Failed(e.detail) from e
        return folder


@dataclass(frozen=True, slots=True)
class Done:
    """A job's outcome: one line for the worker's log, a report of a smoke test, a small result of any kind."""

    message: str
    report: Report | None = None
    result: dict[str, Any] = field(default_factory=dict)
