"""Operations of jobs and campaigns."""

from registry.api.jobs import (
    CampaignRequest,
    CampaignView,
    Claimed,
    ClaimRequest,
    FailRequest,
    FinishRequest,
    JobPage,
    JobSubmit,
    QueuePosition,
    RenewRequest,
)
from registry.api.operations.operation import LARGE_BODY, NO_BODY, PULL, PUSH, REASON, WORK, Tag
from registry.jobs import Job, Lease

# fmt: off
jobs = Tag("jobs", "Work on versions: submit and watch; claim and finish for workers.")
SUBMIT_JOB = jobs.add(
    "submit_job", "POST /jobs", PUSH, JobSubmit, Job, status=201, echo={"kind": "kind"},
    example={"kind": "smoke-test", "ref": "acme/support@3"},
)
LIST_JOBS = jobs.add(
    "list_jobs", "GET /jobs", PULL, NO_BODY, JobPage, echo={"items.kind": "kind", "items.state": "state"},
)
CLAIM_JOB = jobs.add(
    "claim_job", "POST /jobs/claim", WORK, ClaimRequest, Claimed,
    example={"worker": "gpu-1", "bases": ["llama-3.1-8b"]},
)
START_CAMPAIGN = jobs.add(
    "start_campaign", "POST /campaigns", PUSH, CampaignRequest, CampaignView, status=201,
    example={"base": "llama-3.1-8b", "outdated": True},
)
SHOW_CAMPAIGN = jobs.add(
    "show_campaign", "GET /campaigns/{campaign_id}", PULL, NO_BODY, CampaignView, echo={"id": "campaign_id"},
)
SHOW_JOB = jobs.add("show_job", "GET /jobs/{job_id}", PULL, NO_BODY, Job, echo={"id": "job_id"})
SHOW_QUEUE_POSITION = jobs.add("show_queue_position", "GET /jobs/{job_id}/queue", PULL, NO_BODY, QueuePosition)
CANCEL_JOB = jobs.add(
    "cancel_job", "POST /jobs/{job_id}/cancel", PUSH, NO_BODY, Job, echo={"id": "job_id"},
    takes=(REASON,),
)
RENEW_JOB = jobs.add(
    "renew_job", "POST /jobs/{job_id}/renew", WORK, RenewRequest, Lease, echo={"token": "lease_token"},
    example={"lease_token": "lease-4kq2v7x1", "progress": "comparing outputs"},
)
FINISH_JOB = jobs.add(
    "finish_job", "POST /jobs/{job_id}/finish", WORK, FinishRequest, Job, echo={"id": "job_id"},
    example={"lease_token": "lease-4kq2v7x1", "result": {"ref": "acme/support@4"}},
    body_limit=LARGE_BODY,
)
FAIL_JOB = jobs.add(
    "fail_job", "POST /jobs/{job_id}/fail", WORK, FailRequest, Job, echo={"id": "job_id"},
    example={"lease_token": "lease-4kq2v7x1", "error": "the process was killed"},
)
