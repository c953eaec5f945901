"""Jobs: `adapter job list`, `show`, `cancel`, and waiting for one.

Invariants
- Waiting asks the registry; it never changes the job. Ctrl-C ends the waiting, not the job.
- A job that is done exits by its verdict: 6 when it is `fail`. One that could not run exits 75.
"""

from __future__ import annotations

import time

import click

from registry.client.registry import Registry
from registry.errors import Conflict, Unavailable
from registry.evaluation.verdicts import Check, Outcome, Verdict
from registry.jobs import FINAL, Job, JobStep, Kind, State
from registry.names import Ref

from . import output, session, versions

ASK_EVERY_SECONDS = 0.5
REMARK_AFTER_SECONDS = 5.0


def print_submitted(job: Job) -> None:
    click.echo(f"{job.id} {job.state}: {job.kind} {job.subject} on {job.base}")
    click.echo(output.faint(f"  adapter job show {job.id} shows its progress; `adapter worker` runs it"))


def wait_for(registry: Registry, job_id: str, timeout: float | None = None) -> Job:
    """The job when it is final. `Unavailable` (TRY_LATER) when `timeout` seconds pass before."""
    began, remarked, shown = time.monotonic(), False, 0
    while True:
        job = registry.job(job_id)
        for step in job.steps[shown:]:
            again = "" if step.attempt == 1 else f"attempt {step.attempt}: "
            output.note(f"  {again}{output.one_line(step.says)}")
        shown = max(shown, len(job.steps))
        if job.state in FINAL:
            return job
        waited = time.monotonic() - began
        if timeout is not None and waited >= timeout:
            raise Unavailable(
                "TRY_LATER",
                f"job {job.id} is still {job.state} after {timeout:g} seconds",
                next_step=f"it continues: `adapter job show {job.id}`",
            )
        if job.state is State.QUEUED and waited >= REMARK_AFTER_SECONDS and not remarked:
            output.note(f"job {job.id} waits for a worker: run `adapter worker` on a machine with the base's weights")
            remarked = True
        time.sleep(ASK_EVERY_SECONDS)


def verdict_of(registry: Registry, ref: Ref, job: Job) -> Verdict | None:
    """The newest verdict `smoke` of the version that the job was about."""
    subject = Ref(ref.name, job.subject_digest) if job.subject_digest else ref
    verdicts = [v for v in registry.version(subject).verdicts if v.check is Check.SMOKE]
    return verdicts[-1] if verdicts else None


def print_verdict(job: Job, verdict: Verdict | None) -> None:
    click.echo(f"{output.strong(job.subject)} on {job.base}")
    if job.state is State.DONE and verdict is not None:
        output.facts([("", line) for line in versions.verdict_lines([verdict])], indent="")
    else:
        click.echo(f"  {job.id} is {job.state}" + (f": {job.error}" if job.error else ""))


def exit_by(job: Job, verdict: Verdict | None) -> None:
    """End with the exit code that a waited-for job deserves."""
    if job.state is State.CANCELLED:
        raise Conflict("JOB_STATE", f"job {job.id} was cancelled")
    if job.state is State.FAILED:
        raise Unavailable(
            "TRY_LATER",
            f"job {job.id} could not be done: {job.error or 'no reason was given'}",
            next_step="check the reason and the worker, then request it again",
        )
    if verdict is not None and verdict.outcome is Outcome.FAIL:
        click.get_current_context().exit(output.REFUSED)


@click.group()
def job() -> None:
    """Jobs: queued work and what became of it."""


@job.command("list")
@click.option("--state", type=click.Choice([state.value for state in State]), help="Only jobs in this state.")
@click.option("--kind", type=click.Choice([kind.value for kind in Kind]), help="Only jobs of this kind.")
@click.option("--ref", default="", help="Only jobs about this version.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Maximum number of rows.")
@output.json_option
def list_jobs(state: str | None, kind: str | None, ref: str, limit: int) -> None:
    """List jobs, newest first."""
    items: list[Job] = []
    cursor = ""
    with session.registry() as registry:
        while len(items) < limit:
            page = registry.jobs(state=state or "", kind=kind or "", ref=ref, cursor=cursor)
            items += page.items
            cursor = page.next_cursor
            if not cursor:
                break
    shown = items[:limit]
    output.answer({"items": shown}, lambda: _print_list(shown))


def _print_list(items: list[Job]) -> None:
    if not items:
        click.echo("No jobs.")
        return
    rows = [
        (
            item.id,
            _state(item),
            item.kind,
            item.subject,
            item.base,
            f"{item.attempt}/{item.attempts_limit}",
            output.one_line(item.worker),
            output.moment(item.created_at),
            _says(item),
        )
        for item in items
    ]
    columns = ("job", "state", "kind", "version", "base", "attempt", "worker", "made", "says")
    output.table(columns, rows)


def _says(job: Job) -> str:
    """Of a job that is done what came of it; else why it could not be done, or what is being done now."""
    return output.one_line(str(job.result.get("says") or "") if job.state is State.DONE else job.error or job.progress)


def _state(job: Job) -> str:
    color = {State.DONE: "green", State.FAILED: "red", State.RUNNING: "cyan"}.get(job.state)
    return click.style(job.state, fg=color)


@job.command()
@click.argument("job_id", metavar="ID")
@output.json_option
def show(job_id: str) -> None:
    """Show a job: state, attempts, worker and result."""
    with session.registry() as registry:
        shown_job = registry.job(job_id)
    output.answer(shown_job, lambda: _print_job(shown_job))


@job.command()
@click.argument("job_id", metavar="ID")
@output.json_option
def cancel(job_id: str) -> None:
    """Cancel a queued or running job."""
    with session.registry() as registry:
        cancelled = registry.cancel(job_id)
    output.answer(cancelled, lambda: _print_job(cancelled))


def _step(step: JobStep) -> str:
    return f"{output.moment(step.at)}  {output.one_line(step.says)}"


def _print_job(job: Job) -> None:
    sources: list[str] = job.payload.get("sources") or []
    click.echo(f"{output.strong(job.id)}  {_state(job)}")
    output.facts(
        [
            ("work", f"{job.kind} {job.subject} on {job.base}"),
            ("of", ", ".join(sources) if len(sources) > 1 else ""),
            ("into", str(job.payload.get("into") or "")),
            ("attempt", f"{job.attempt} of {job.attempts_limit}"),
            ("worker", output.one_line(job.worker)),
            ("progress", "\n".join(_step(step) for step in job.steps) or output.one_line(job.progress)),
            ("result", _says(job) if job.state is State.DONE else ""),
            ("notes", output.plain("\n".join((job.result.get("report") or {}).get("notes", ())))),
            ("priority", str(job.priority) if job.priority else ""),
            ("error", output.plain(job.error)),
            ("made", f"{output.moment(job.created_at)} by {job.created_by}"),
            ("started", output.moment(job.started_at)),
            ("finished", output.moment(job.finished_at)),
        ]
    )
