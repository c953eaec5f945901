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

JOB_LEASE_SECONDS = 60
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
    """When the worker reported it."""
    attempt: int
    """Which attempt this is, from 1."""
    message: str
    """What the worker was doing."""


class Job(FrozenModel):
    """One piece of work on one version."""

    id: str = Field(pattern=JOB_ID_PATTERN)
    """Identifier, with a prefix that names the kind (`tok_`, `job_` …)."""
    kind: Kind
    """What the worker does: `smoke-test`, `merge`, `fuse` …"""
    state: State
    """`queued`, `running`, `done`, `failed` or `cancelled`."""
    namespace: str
    """Namespace of the subject, whose members may see the job."""
    subject: str
    """Adapter version that the job is about, as `namespace/name@number`."""
    subject_digest: Digest | None = None
    """Digest of that version; null for jobs without one."""
    base: str
    """Name of the base model, such as `llama-3.1-8b`."""
    priority: int = 0
    """Higher goes first; 0 is that of a push."""
    attempt: int = 0
    """Number of attempts so far."""
    attempts_limit: int = ATTEMPTS_LIMIT
    """After this many failed attempts the job has failed."""
    payload: dict[str, Any] = Field(default_factory=dict)
    """Options of this kind of job. Empty for smoke tests."""
    progress: str = ""
    """What the worker last reported that it was doing."""
    result: dict[str, Any] = Field(default_factory=dict)
    """What the job made, by kind: an outcome, or the ref of a new version. Empty until it is done."""
    error: str = ""
    """Why it failed; empty if it did not."""
    worker: str = ""
    """Worker that has or had the lease."""
    created_by: str = ""
    """Identity whose token created it."""
    created_at: datetime
    """When it was created."""
    started_at: datetime | None = None
    """When a worker first claimed it; null before."""
    finished_at: datetime | None = None
    """When it was done, had failed or was cancelled; null before."""
    steps: tuple[JobStep, ...] = ()
    """What workers reported that they were doing, oldest first, at most 200."""
    lease_expired: bool = False
    """Whether that worker has not renewed its lease in time: the next worker that asks takes the job back."""

    @property
    def waits_for_a_worker(self) -> bool:
        """Whether no worker has it, or the one that has it is silent."""
        return self.state is State.QUEUED or self.lease_expired


class Lease(FrozenModel):
    """A worker's time-limited claim. `token` must come with every renewal and with the result."""

    token: str = Field(repr=False)
    """Send it with every renewal and with the result."""
    expires_at: datetime
    """When it ends."""
    seconds: int = JOB_LEASE_SECONDS
    """How long the lease lasts without a renewal. Renew it after a third of that."""
