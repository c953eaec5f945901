"""The pages of jobs and campaigns: what waits, runs and ended, and how far a campaign is."""

from fastapi import Request, Response

from registry.jobs import FINAL, Kind, State
from registry.roles import Scope
from registry.server.http.dependencies import CursorDep, SessionDep, Text
from registry.server.http.request_body import limit_body
from registry.server.jobs import campaigns, requests
from registry.server.pages.rendering import create_router, redirect, render
from registry.server.pages.sessions.forms import FORM_BYTES, read_fields
from registry.server.pages.sessions.visitors import SignedInDep

router = create_router()
PAGE_JOBS = 50


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
    return render(
        request, "jobs.html", is_live=True, title="Jobs", page=page, filters=filters, cursor=cursor,
        campaigns=newest, states=State, kinds=Kind,
    )  # fmt: skip


@router.get("/jobs/{job_id}")
def show_job(request: Request, session: SessionDep, visitor: SignedInDep, job_id: str) -> Response:
    """Show one job with its steps."""
    job = requests.show_job(session, visitor.actor, job_id)
    adapter = job.subject.partition("@")[0].partition("/")[2]
    is_over, may_cancel = job.state in FINAL, visitor.actor.may(Scope.PUSH, job.namespace, adapter)
    return render(
        request, "job.html", is_live=job.state not in FINAL, title=f"Job {job.id}", job=job,
        may_cancel=bool(visitor.form_token) and may_cancel and not is_over,
    )  # fmt: skip


@router.post("/jobs/{job_id}/cancel")
@limit_body(FORM_BYTES)
def cancel_job(request: Request, session: SessionDep, visitor: SignedInDep, job_id: str) -> Response:
    """Cancel a job."""
    read_fields(request, visitor)
    job = requests.cancel_job(session, visitor.actor, job_id)
    return redirect(f"/jobs/{job.id}")


@router.get("/campaigns/{campaign_id}")
def show_campaign(request: Request, session: SessionDep, visitor: SignedInDep, campaign_id: str) -> Response:
    """Show how far a campaign is, and which outcomes it changed."""
    campaign = campaigns.show_campaign(session, visitor.actor, campaign_id)
    return render(
        request, "campaign.html", is_live=not campaign.finished, title=f"Campaign on {campaign.base}",
        campaign=campaign, final=FINAL,
    )  # fmt: skip
