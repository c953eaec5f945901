"""Routes of jobs: submit, show and cancel for people; claim, renew, finish and fail for workers."""

from typing import Any

from fastapi import Response

from registry.api import jobs
from registry.api.operations import jobs as operations
from registry.digest import Digest
from registry.jobs import Job, Lease
from registry.names import AdapterName
from registry.server.catalog import bases, versions
from registry.server.http import dependencies as deps
from registry.server.http.documents import JsonBody
from registry.server.http.operation_router import OperationRouter
from registry.server.jobs import campaigns, queue, queue_position, requests, results

router = OperationRouter()
_UNCLAIMED: dict[int | str, dict[str, Any]] = {204: {"description": "No job for this worker now"}}
_WAIT = {"Retry-After": "1"}


@router.serves(operations.SUBMIT_JOB)
def submit_job(session: deps.SessionDep, actor: deps.ActorDep, request: JsonBody[jobs.JobSubmit]) -> Job:
    """Queue a job. An equal job that is queued or running is returned instead of a second one."""
    return requests.submit_job(session, actor, request)


@router.serves(operations.LIST_JOBS)
def list_jobs(
    session: deps.SessionDep,
    actor: deps.ActorDep,
    cursor: deps.CursorDep,
    state: deps.Text = "",
    kind: deps.Text = "",
    ref: deps.Text = "",
    limit: deps.LimitDep = deps.PAGE,
    count: bool = False,
) -> jobs.JobPage:
    """List jobs, newest first."""
    return requests.list_jobs(session, actor, state=state, kind=kind, ref=ref, cursor=cursor, limit=limit, count=count)


@router.serves(operations.CLAIM_JOB, responses=_UNCLAIMED)
def claim_job(
    session: deps.SessionDep, actor: deps.ActorDep, request: JsonBody[jobs.ClaimRequest]
) -> jobs.Claimed | Response:
    """Claim the next job that this worker can do. 204 if there is none; `Retry-After` if other requests hold some."""
    claimed = queue.claim(session, actor, request)
    if isinstance(claimed, queue.Unclaimed):
        return Response(status_code=204, headers=_WAIT if claimed is queue.Unclaimed.LOCKED else {})
    row, lease = claimed
    if row.subject_digest is None:
        return jobs.Claimed(job=queue.to_job(row), lease=lease)
    name = AdapterName.parse(row.subject.partition("@")[0])
    return jobs.Claimed(
        job=queue.to_job(row),
        lease=lease,
        subject=versions.resolve(session, actor, name, Digest(row.subject_digest)),
        base=bases.show(session, actor, row.base),
    )


@router.serves(operations.START_CAMPAIGN)
def start_campaign(
    session: deps.SessionDep, actor: deps.ActorDep, request: JsonBody[jobs.CampaignRequest]
) -> jobs.CampaignView:
    """Queue smoke tests of the versions of a base model."""
    return campaigns.start_campaign(session, actor, request)


@router.serves(operations.SHOW_CAMPAIGN)
def show_campaign(session: deps.SessionDep, actor: deps.ActorDep, campaign_id: str) -> jobs.CampaignView:
    """Show how far a campaign is and which outcomes it changed."""
    return campaigns.show_campaign(session, actor, campaign_id)


@router.serves(operations.SHOW_JOB)
def show_job(session: deps.SessionDep, actor: deps.ActorDep, job_id: str) -> Job:
    """Show one job with its steps."""
    return requests.show_job(session, actor, job_id)


@router.serves(operations.SHOW_QUEUE_POSITION)
def show_queue_position(session: deps.SessionDep, actor: deps.ActorDep, job_id: str) -> jobs.QueuePosition:
    """Show what a queued job waits for."""
    return queue_position.show_position(session, actor, job_id)


@router.serves(operations.CANCEL_JOB)
def cancel_job(session: deps.SessionDep, actor: deps.ActorDep, job_id: str) -> Job:
    """Cancel a job. A worker that runs it learns so when it renews its lease."""
    return requests.cancel_job(session, actor, job_id)


@router.serves(operations.RENEW_JOB)
def renew_job(
    session: deps.SessionDep, actor: deps.ActorDep, job_id: str, request: JsonBody[jobs.RenewRequest]
) -> Lease:
    """Renew the lease of a job and report progress."""
    return queue.renew(session, actor, job_id, request.lease_token, progress=request.progress)


@router.serves(operations.FINISH_JOB)
def finish_job(
    session: deps.KeyedSessionDep,
    actor: deps.ActorDep,
    blobs: deps.BlobsDep,
    job_id: str,
    request: JsonBody[jobs.FinishRequest],
) -> Job:
    """Finish a job with its report or result."""
    return results.finish_job(session, actor, job_id, request, store=blobs)


@router.serves(operations.FAIL_JOB)
def fail_job(session: deps.SessionDep, actor: deps.ActorDep, job_id: str, request: JsonBody[jobs.FailRequest]) -> Job:
    """Report that an attempt failed. The job is retried until its attempts are used up."""
    return queue.to_job(queue.fail(session, actor, job_id, request))
