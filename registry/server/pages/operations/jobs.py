"""The pages of jobs and campaigns: what waits, runs and ended, and how far a campaign is."""

import itertools
from collections.abc import Sequence

from fastapi import Request, Response

from registry.api.jobs import JobSubmit
from registry.jobs import FINAL, Job, Kind, State
from registry.roles import Scope
from registry.server.http.dependencies import CursorDep, SessionDep, Text
from registry.server.http.request_body import limit_body
from registry.server.jobs import campaigns, requests
from registry.server.pages.rendering import create_router, redirect, render
from registry.server.pages.sessions.forms import FORM_BYTES, read_fields
from registry.server.pages.sessions.visitors import SignedInDep, Visitor

router = create_router()
PAGE_JOBS = 50
ROWS_ALONE = 4


@router.get("/jobs")
def show_jobs(
    request: Request, session: SessionDep, visitor: SignedInDep, cursor: CursorDep, state: Text = "", kind: Text = "",
    ref: Text = "",
) -> Response:  # fmt: skip
    """Show jobs, newest first, and the newest campaigns."""
    filters = {"state": state, "kind": kind, "ref": ref.strip()}
    page = requests.list_jobs(
        session, visitor.actor, state=state, kind=kind, ref=ref.strip(), cursor=cursor, limit=PAGE_JOBS
    )
    newest = [] if cursor or any(filters.values()) else campaigns.list_newest(session, visitor.actor)
    waiting = [job.id for job in page.items if job.state == State.QUEUED and _may_change(visitor, job)]
    return render(
        request, "jobs.html", is_live=True, title="Jobs", page=page, filters=filters, cursor=cursor,
        campaigns=newest, states=State, kinds=Kind, counts=requests.count_open(session, visitor.actor),
        groups=_group(page.items), waiting=waiting,
    )  # fmt: skip


def _group(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs of one kind and state that follow each other, as one group if there are more than `ROWS_ALONE`."""
    groups = [list(group) for _, group in itertools.groupby(jobs, key=lambda job: (job.kind, job.state))]
    return [part for group in groups for part in ([group] if len(group) > ROWS_ALONE else [[job] for job in group])]


def _may_change(visitor: Visitor, job: Job) -> bool:
    adapter = job.subject.partition("@")[0].partition("/")[2]
    return bool(visitor.form_token) and visitor.actor.may(Scope.PUSH, job.namespace, adapter)


@router.get("/jobs/{job_id}")
def show_job(request: Request, session: SessionDep, visitor: SignedInDep, job_id: str) -> Response:
    """Show one job with its steps."""
    job = requests.show_job(session, visitor.actor, job_id)
    is_over, may_change = job.state in FINAL, _may_change(visitor, job)
    return render(
        request, "job.html", is_live=not is_over, title=f"{job.kind} of {job.subject}", job=job,
        may_cancel=may_change and not is_over,
        may_repeat=may_change and is_over and job.kind == Kind.SMOKE_TEST,
    )  # fmt: skip


@router.post("/jobs/{job_id}/cancel")
@limit_body(FORM_BYTES)
def cancel_job(request: Request, session: SessionDep, visitor: SignedInDep, job_id: str) -> Response:
    """Cancel a job."""
    read_fields(request, visitor)
    job = requests.cancel_job(session, visitor.actor, job_id)
    return redirect(f"/jobs/{job.id}")


@router.post("/jobs/cancel")
@limit_body(FORM_BYTES)
def cancel_jobs(request: Request, session: SessionDep, visitor: SignedInDep) -> Response:
    """Cancel the jobs that the page has listed and that still wait."""
    fields = read_fields(request, visitor)
    for job_id in fields.get("jobs", "").split()[:PAGE_JOBS]:
        if requests.show_job(session, visitor.actor, job_id).state == State.QUEUED:
            requests.cancel_job(session, visitor.actor, job_id)
    return redirect("/jobs")


@router.post("/jobs/{job_id}/repeat")
@limit_body(FORM_BYTES)
def repeat_job(request: Request, session: SessionDep, visitor: SignedInDep, job_id: str) -> Response:
    """Queue a smoke test again."""
    read_fields(request, visitor)
    job = requests.show_job(session, visitor.actor, job_id)
    new = requests.submit_job(session, visitor.actor, JobSubmit(kind=job.kind, ref=job.subject))
    return redirect(f"/jobs/{new.id}")


@router.get("/campaigns/{campaign_id}")
def show_campaign(request: Request, session: SessionDep, visitor: SignedInDep, campaign_id: str) -> Response:
    """Show how far a campaign is, and which outcomes it changed."""
    campaign = campaigns.show_campaign(session, visitor.actor, campaign_id)
    return render(
        request, "campaign.html", is_live=not campaign.finished, title=f"Campaign on {campaign.base}",
        campaign=campaign, final=FINAL,
    )  # fmt: skip
