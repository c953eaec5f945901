"""`Task` and `Done`: what a claimed job's runner gets, and what it leaves; `Failed` when an attempt cannot answer.

Invariants
- A runner changes nothing in the registry: what it leaves, it answers; the loop sends it with the lease's token.
- What it writes lies in a folder of this job alone, which is gone afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry.api.catalog import BaseView, Resolved
from registry.api.jobs import Claimed
from registry.client import pull as pulling
from registry.client.registry import Registry
from registry.errors import Corrupt
from registry.evaluation.reports import Report
from registry.jobs import Job
from registry.names import AdapterName, Ref
from registry.worker.lease import Held
from registry.worker.model.sources import BaseSource
from registry.worker.model_process.client import ProcessLimits
from registry.worker.model_process.pool import Pool


class Failed(Exception):
    """This attempt could not answer. `final`: no other attempt would either."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


@dataclass(frozen=True, slots=True)
class Task:
    """One claimed job with everything that its runner may use. `source` is the job's base, where it lies here."""

    registry: Registry
    claimed: Claimed
    lease: Held
    pool: Pool
    limits: ProcessLimits
    source: BaseSource | None = None

    @property
    def job(self) -> Job:
        return self.claimed.job

    @property
    def subject(self) -> Resolved:
        if self.claimed.subject is None:
            raise Failed("the job names no version", final=True)
        return self.claimed.subject

    @property
    def base(self) -> BaseView:
        if self.claimed.base is None:
            raise Failed("the job names no base", final=True)
        return self.claimed.base

    def ready_source(self) -> BaseSource:
        """The job's base on this machine, still the one that is registered."""
        if self.source is None:
            raise Failed(f"the base {self.base.name} is not on this machine")
        if self.base.fingerprint != self.source.fingerprint:
            raise Failed(f"the base {self.base.name} was registered again since this worker read it")
        return self.source

    def pull(self, folder: Path, subject: Resolved | None = None) -> Path:
        """The version's files in `folder`, each byte verified against its manifest."""
        subject = subject or self.subject
        try:
            pulling.pull(self.registry, Ref(AdapterName.parse(subject.name), subject.digest), folder, cache=None)
        except Corrupt as e:
            raise Failed(e.detail) from e
        return folder


@dataclass(frozen=True, slots=True)
class Done:
    """What a job leaves: one line for the worker's log, a report for a validation, a small result for any kind."""

    message: str
    report: Report | None = None
    result: dict[str, Any] = field(default_factory=dict)
