"""The REST contract of jobs: submit, claim, renew, finish, fail. Used by server, client and worker alike.

Invariants
- Whoever renews, finishes or fails a job shows its lease's token; a late one is refused.
- A worker's report is input like any other: bounded, typed, and turned into a verdict by the server.

Example
    >>> ClaimRequest(worker="gpu-7").kinds
    [<Kind.VALIDATE: 'validate'>]
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from registry.jobs import Job, Kind, Lease
from registry.verdicts import Report
from registry.wire import Answer, BaseView, Request, Resolved


class JobSubmit(Request):
    kind: Kind
    ref: str = ""
    payload: dict[str, Any] = {}


class ClaimRequest(Request):
    """POST /jobs/claim. `bases` are what this worker can load, warm ones first; empty means any."""

    worker: str = Field(min_length=1, max_length=200)
    kinds: list[Kind] = [Kind.VALIDATE]
    bases: list[str] = []


class Claimed(Answer):
    job: Job
    lease: Lease
    subject: Resolved | None = None
    base: BaseView | None = None


class RenewRequest(Request):
    lease_token: str
    progress: str = Field(default="", max_length=500)


class FinishRequest(Request):
    """POST /jobs/{id}/finish: the report of a job done. The server makes the verdict from it."""

    lease_token: str
    report: Report | None = None
    result: dict[str, Any] = {}


class FailRequest(Request):
    """POST /jobs/{id}/fail: this attempt could not answer. `final` parks the job at once."""

    lease_token: str
    error: str = Field(max_length=4000)
    final: bool = False


class JobPage(Answer):
    items: list[Job]
    next_cursor: str = ""
