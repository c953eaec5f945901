"""The REST contract of jobs: submit, claim, renew, finish, fail. Used by server, client and worker alike.

Invariants
- Whoever renews, finishes or fails a job shows its lease's token; a late one is refused.
- A worker's report is input like any other: bounded, typed, and turned into a verdict by the server.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from registry.api import Answer, ItemPage, Request
from registry.api.catalog import BaseView, Resolved
from registry.evaluation.reports import Report
from registry.jobs import PRIORITY_LIMIT, Job, Kind, Lease, State

BASES_LIMIT = 500
"""Bases that one claim names: each is a part of the statement, which the whole queue waits for."""
LeaseToken = Annotated[str, Field(max_length=100, pattern=r"^[!-~]*$")]


class JobSubmit(Request):
    kind: Kind
    ref: str = ""
    payload: dict[str, Any] = {}
    priority: int = Field(default=0, ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT)


class ClaimRequest(Request):
    """POST /jobs/claim. `bases` are what this worker can load, warm ones first; empty means any."""

    worker: str = Field(min_length=1, max_length=200)
    kinds: list[Kind] = Field(default=[Kind.SMOKE_TEST], max_length=len(Kind))
    bases: list[str] = Field(default=[], max_length=BASES_LIMIT)


class Claimed(Answer):
    job: Job
    lease: Lease
    subject: Resolved | None = None
    base: BaseView | None = None


class RenewRequest(Request):
    lease_token: LeaseToken
    progress: str = Field(default="", max_length=500)


class FinishRequest(Request):
    """POST /jobs/{id}/finish: the report of a job done. The server makes the verdict from it."""

    lease_token: LeaseToken
    report: Report | None = None
    result: dict[str, Any] = {}


class FailRequest(Request):
    """POST /jobs/{id}/fail: this attempt could not answer. `final` ends the job at once."""

    lease_token: LeaseToken
    error: str = Field(max_length=4000)
    final: bool = False


class JobPage(ItemPage[Job]):
    """A page of jobs, newest first."""


class CampaignRequest(Request):
    """POST /campaigns: try the versions of a base again.

    `outdated` leaves out those whose newest verdict was made on the base's fingerprint; `made_by` (tool → version, such
    as torch → 2.13.0, whatever its build) those whose verdict was made with just these. With neither, every version is
    tried.
    """

    base: str
    outdated: bool = False
    made_by: dict[str, str] = Field(default={}, max_length=20)
    priority: int = Field(default=-10, ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT)


class CampaignItem(Answer):
    """A version that is judged otherwise than before (`before` and `after` are outcomes, empty for none)."""

    version: str
    job: str
    state: State
    before: str
    after: str
    summary: str = ""


class CampaignView(Answer):
    """`states` counts jobs by state, `changed` the versions that `items` names (at most 1000 of them)."""

    id: str
    base: str
    created_at: datetime
    created_by: str
    total: int
    states: dict[State, int]
    finished: bool
    changed: int
    items: list[CampaignItem]
