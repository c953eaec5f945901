"""`Job`: queued work, its kinds and states, the transitions, and the `Lease` a worker holds on it.

    queued ──claim──▶ running ──finish──▶ done
      ▲                  │ ├──fail (tries left)──▶ queued
      │                  │ ├──fail (no tries left)──▶ failed
      └──lease expires───┘ └──cancel──▶ cancelled        queued ──cancel──▶ cancelled
                                                         queued ──newer checkpoint──▶ superseded

A job has at most one live lease; its token is fencing, so a late result with an old token is refused. An expired lease
gives the job back with `attempt + 1`, so the work must be idempotent. A verdict of "fail" is a job that is done.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from registry.digest import Digest
from registry.model import FrozenModel

LEASE_SECONDS = 60
"""How long a claim lasts without a renewal. A worker renews at a third of it."""

ATTEMPTS_LIMIT = 3
BACKOFF_SECONDS = (2, 15, 60)
"""How long a failed job waits before its second, third … attempt."""

PAYLOAD_LIMIT_BYTES = 64 * 2**10
RESULT_LIMIT_BYTES = 2**20
STEPS_LIMIT = 200
"""Steps kept of one job; later ones only replace `progress`."""
PRIORITY_LIMIT = 100
"""A priority lies between minus and plus this; the higher goes first, 0 is a push's own."""


class Kind(StrEnum):
    """Kind of a job. `fuse` merges an adapter into its base; `convert-on-base` needs the base's weights."""

    SMOKE_TEST = "smoke-test"
    MERGE = "merge"
    FUSE = "fuse"
    CONVERT = "convert"
    CONVERT_ON_BASE = "convert-on-base"


KINDS_WITHOUT_BASE = (Kind.MERGE, Kind.CONVERT)
"""Kinds that read no weights of a base; a worker claims every other kind only for bases that it has."""


class State(StrEnum):
    """State of a job. `failed`: no attempt is left."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"


FINAL = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.SUPERSEDED})


def backoff_seconds(attempt: int) -> int:
    """How long to wait after the attempt with this number (from 1) has failed."""
    return BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS)) - 1]


JOB_ID_PATTERN = r"^job_[0-9a-f]{20}$"


class JobStep(FrozenModel):
    """What a worker said that it was doing, and when."""

    at: datetime
    attempt: int
    message: str


class Job(FrozenModel):
    """One piece of work on one version."""

    id: str = Field(pattern=JOB_ID_PATTERN)
    kind: Kind
    state: State
    namespace: str
    subject: str
    subject_digest: Digest | None = None
    base: str
    priority: int = 0
    attempt: int = 0
    attempts_limit: int = ATTEMPTS_LIMIT
    payload: dict[str, Any] = Field(default_factory=dict)
    progress: str = ""
    result: dict[str, Any] = Field(default_factory=dict)
    error: str = ""
    worker: str = ""
    created_by: str = ""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    steps: tuple[JobStep, ...] = ()
    lease_expired: bool = False

    @property
    def waits_for_a_worker(self) -> bool:
        """Whether no worker has it, or the one that has it is silent."""
        return self.state is State.QUEUED or self.lease_expired


class Lease(FrozenModel):
    """A worker's time-limited claim. `token` must come with every renewal and with the result."""

    token: str = Field(repr=False)
    expires_at: datetime
    seconds: int = LEASE_SECONDS
