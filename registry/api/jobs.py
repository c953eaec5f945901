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
    ref: str = ""
    payload: dict[str, Any] = {}
    priority: int = Field(default=0, ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT)


class ClaimRequest(Request):
    """What a worker can do."""

    worker: EscapedText = Field(min_length=1, max_length=200)
    kinds: list[Kind] = Field(default=[Kind.SMOKE_TEST], max_length=len(Kind))
    bases: list[str] = Field(default=[], max_length=BASES_LIMIT)


class Claimed(Response):
    """A job, its lease, and what the job is about."""

    job: Job
    lease: Lease
    subject: Resolved | None = None
    base: BaseView | None = None


class RenewRequest(Request):
    """Keep the lease of a job."""

    lease_token: LeaseToken
    progress: EscapedText = Field(default="", max_length=500)


class FinishRequest(Request):
    """The report of a smoke test, or the result of another job. The server makes the verdict from the report."""

    lease_token: LeaseToken
    report: Report | None = None
    result: dict[str, Any] = {}


class FailRequest(Request):
    """Why an attempt failed."""

    lease_token: LeaseToken
    error: EscapedText = Field(max_length=4000)
    final: bool = False


class JobPage(ItemPage[Job]):
    """A page of jobs, newest first."""

    total: int | None = None


class QueuePosition(Response):
    """What a job waits for. Of jobs that the caller may not see it says only that they keep a worker busy."""

    worker_is_busy: bool | None = None
    jobs_ahead: int = 0


class CampaignRequest(Request):
    """Test the versions of a base again."""

    base: str
    outdated: bool = False
    made_by: dict[str, str] = Field(default={}, max_length=20)
    priority: int = Field(default=-10, ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT)


class CampaignItem(Response):
    """A version whose outcome has changed."""

    version: str
    job: str
    state: State
    before: str
    after: str
    summary: str = ""


class CampaignView(Response):
    """A campaign: smoke tests of all versions of a base, and which outcomes changed."""

    id: str
    base: str
    created_at: datetime
    created_by: str
    total: int
    states: dict[State, int]
    finished: bool
    worker_is_busy: bool | None = None
    changed: int
    items: list[CampaignItem]
