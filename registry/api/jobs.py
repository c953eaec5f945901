"""REST schemas of jobs: submit, claim, renew, finish, fail; campaigns.

A worker shows its lease's token when it renews, finishes or fails a job. The server makes the verdict from its report.
"""

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from registry.api.bases import BaseView
from registry.api.catalog import Resolved
from registry.api.models import EscapedText, ItemPage, Request, Response
from registry.evaluation.reports import Report
from registry.jobs import PRIORITY_LIMIT, Job, Kind, Lease, State

BASES_LIMIT = 500
"""How many bases a claim may name: each is part of a statement for which the whole queue waits."""
LeaseToken = Annotated[str, Field(max_length=100, pattern=r"^[!-~]*$", repr=False)]


class JobSubmit(Request):
    """A new job."""

    kind: Kind
    """What the worker does: `smoke-test`, `merge`, `fuse` …"""
    ref: str = ""
    """Adapter or version, such as `acme/support@3`. A merge names its sources in `payload`."""
    payload: dict[str, Any] = {}
    """Options of this kind of job: a merge recipe, a conversion. Empty for smoke tests."""
    priority: int = Field(default=0, ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT)
    """Higher goes first; 0 is that of a push."""


class ClaimRequest(Request):
    """What a worker can do."""

    worker: EscapedText = Field(min_length=1, max_length=200)
    """Name of the worker."""
    kinds: list[Kind] = Field(default=[Kind.SMOKE_TEST], max_length=len(Kind))
    """Kinds of job that the worker does."""
    bases: list[str] = Field(default=[], max_length=BASES_LIMIT)
    """Bases that the worker can load, those in memory first. Empty: any."""


class Claimed(Response):
    """A job, its lease, and what the job is about."""

    job: Job
    """The job to do."""
    lease: Lease
    """The claim on it."""
    subject: Resolved | None = None
    """The version that the job is about, with links to its files; null for jobs without one."""
    base: BaseView | None = None
    """The base to work on; null if the job needs none."""


class RenewRequest(Request):
    """Keep the lease of a job."""

    lease_token: LeaseToken
    """Token of the lease from the claim. A late worker with an old one is refused."""
    progress: EscapedText = Field(default="", max_length=500)
    """What the worker is doing now, for people. Empty: unchanged."""


class FinishRequest(Request):
    """The report of a smoke test, or the result of another job. The server makes the verdict from the report."""

    lease_token: LeaseToken
    """Token of the lease from the claim. A late worker with an old one is refused."""
    report: Report | None = None
    """Report of a smoke test; null for other kinds."""
    result: dict[str, Any] = {}
    """Result of another kind of job, such as the ref of the version that it pushed."""


class FailRequest(Request):
    """Why an attempt failed."""

    lease_token: LeaseToken
    """Token of the lease from the claim. A late worker with an old one is refused."""
    error: EscapedText = Field(max_length=4000)
    """Why the attempt failed."""
    final: bool = False
    """Whether another attempt would fail too: then the job has failed at once."""


class JobPage(ItemPage[Job]):
    """A page of jobs, newest first."""

    items: list[Job]
    """Jobs that the caller may see, newest first."""

    total: int | None = None
    """How many items all pages have together, if `count` was requested."""


class QueuePosition(Response):
    """What a job waits for. Of jobs that the caller may not see it says only that they keep a worker busy."""

    worker_is_busy: bool | None = None
    """Whether a worker that takes such jobs runs another one now."""
    jobs_ahead: int = 0
    """Jobs that the caller may see and that run or go first, at most 1,000. Namespaces take turns, so the order may
    differ."""


class CampaignRequest(Request):
    """Test the versions of a base again."""

    base: str
    """Name of the base model, such as `llama-3.1-8b`."""
    outdated: bool = False
    """Leave out versions whose newest verdict is about the base's current fingerprint."""
    made_by: dict[str, str] = Field(default={}, max_length=20)
    """Tool → version, such as `torch` → `2.13.0`: leave out verdicts that were made with exactly these."""
    priority: int = Field(default=-10, ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT)
    """Priority of the jobs; below 0, pushes go first."""


class CampaignItem(Response):
    """A version whose outcome has changed."""

    version: str
    """Version, as `namespace/name@number`."""
    job: str
    """Identifier of its job."""
    state: State
    """`queued`, `running`, `done`, `failed` or `cancelled`."""
    before: str
    """Outcome before. Empty if there was none."""
    after: str
    """Outcome now."""
    summary: str = ""
    """Why, in one sentence."""


class CampaignView(Response):
    """A campaign: smoke tests of all versions of a base, and which outcomes changed."""

    id: str
    """Identifier, with a prefix that names the kind (`tok_`, `job_` …)."""
    base: str
    """Name of the base model, such as `llama-3.1-8b`."""
    created_at: datetime
    """When it was created."""
    created_by: str
    """Identity whose token created it."""
    total: int
    """Number of jobs."""
    states: dict[State, int]
    """State of a job → number of jobs."""
    finished: bool
    """Whether every job has ended."""
    worker_is_busy: bool | None = None
    """Whether a worker runs one of the jobs now, or another job and may take one of these next."""
    changed: int
    """Number of versions whose outcome changed."""
    items: list[CampaignItem]
    """Versions whose outcome changed; the first 1,000."""
