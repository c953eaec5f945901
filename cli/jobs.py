"""`adapter job …` and `adapter smoke-test`: queued work, campaigns, and waiting for either.

Waiting only polls the registry: Ctrl-C ends the waiting, not the work. Exit 6 if a version fails its test (a campaign:
if a verdict became `fail`), 75 if it could not be tested.
"""

import sys
import time
from functools import partial

import click

from registry import names
from registry.api.jobs import CampaignItem, CampaignRequest, CampaignView, JobSubmit, QueuePosition
from registry.client import registries, waiting
from registry.client.registry import Registry
from registry.errors import Conflict, RegistryError, Unavailable
from registry.evaluation.verdicts import Check, Outcome, Verdict
from registry.jobs import FINAL, PRIORITY_LIMIT, Job, Kind, State
from registry.names import Ref

from .console import arguments, output, session, tables, versions
from .console.options import Command, Group
from .console.progress import on_terminal
from .console.tables import Column, Table

CAMPAIGN_POLL_SECONDS = 1.0
NO_WORKER_NOTE_SECONDS = 5.0


def _no_worker_note() -> str:
    if registries.target().embedded:
        return "waiting for a worker: run `adapter worker --once` in another terminal"
    return "waiting for a worker: run `adapter worker` on a machine with the base's weights"


def print_submitted(job: Job) -> None:
    """Print a job that was just submitted, and how to follow it."""
    output.line(f"{job.id} {job.state}: {job.kind} {job.subject} on {job.base}")
    if job.state not in FINAL:
        once = " --once" if registries.target().embedded else ""
        output.line(output.faint(f"  adapter job show {job.id} shows its progress; `adapter worker{once}` runs it"))


def wait_for(
    registry: Registry, job_id: str, timeout: float | None = None, *, queued_timeout: float | None = None,
    names_subject: bool = False,
) -> Job:  # fmt: skip
    """Poll until the job is final, and print its steps. Limits and errors are those of `waiting.wait_for_job`.

    `names_subject`: each step names the version, because the command waits for several.
    """
    note, steps_shown = "", 0

    def show(job: Job, waited: float, position: QueuePosition | None) -> None:
        nonlocal note, steps_shown
        for step in job.steps[steps_shown:]:
            attempt = "" if step.attempt == 1 else f"attempt {step.attempt}: "
            output.note(f"  {f'{job.subject}: ' if names_subject else ''}{attempt}{step.message}")
        steps_shown = max(steps_shown, len(job.steps))
        if job.waits_for_a_worker and waited >= NO_WORKER_NOTE_SECONDS:
            current = _no_worker_note()
            if position is not None and position.worker_is_busy:
                current = f"queued behind {output.plural(position.jobs_ahead, 'job')}; the workers are busy"
            if current != note:
                output.note(current)
            note = current

    return waiting.wait_for_job(registry, job_id, timeout, queued_timeout=queued_timeout, on_poll=show)


def exit_by(job: Job, verdict: Verdict | None) -> None:
    """End with the exit code of a job that was waited for."""
    if error := error_of(job):
        raise error
    if verdict is not None and verdict.outcome is Outcome.FAIL:
        output.exit_with(output.REFUSED)


def error_of(job: Job) -> RegistryError | None:
    """Why a job that was waited for brought no result; None if it is done."""
    if job.state is State.CANCELLED:
        return Conflict("JOB_STATE", f"job {job.id} was cancelled")
    if job.state is State.SUPERSEDED:
        next_step = f"a newer version is tested instead; to test this one, too: adapter smoke-test {job.subject}"
        return Conflict("JOB_STATE", f"job {job.id} was {job.error}", next_step=next_step)
    if job.state is State.FAILED:
        return Unavailable(
            "TRY_LATER",
            f"job {job.id} failed: {job.error or 'no reason was given'}",
            next_step="check the reason and the worker, then request it again",
        )
    return None


@click.group(cls=Group)
def job() -> None:
    """Jobs: list, show, cancel."""


def _status(job: Job) -> str:
    """The result of a finished job; else why it failed, or what it is doing."""
    return str(job.result.get("message") or "") if job.state is State.DONE else job.error or job.progress


def _state(job: Job) -> str:
    color = {State.DONE: "green", State.FAILED: "red", State.RUNNING: "cyan"}.get(job.state)
    return output.styled(job.state, color) if color else job.state


JOBS: Table[Job] = Table((
    Column("job", lambda job: job.id, whole=True),
    Column("state", lambda job: job.state, _state),
    Column("kind", lambda job: job.kind),
    Column("version", lambda job: job.subject),
    Column("created", lambda job: job.created_at),
    Column("base", lambda job: job.base),
    Column("attempt", lambda job: job.attempt, lambda job: f"{job.attempt}/{job.attempts_limit}"),
    Column("worker", lambda job: job.worker),
    Column("status", _status, flows=True),
), empty="No jobs.")  # fmt: skip


@job.command("list")
@click.option("--state", type=click.Choice([state.value for state in State]), help="Only jobs in this state.")
@click.option("--kind", type=click.Choice([kind.value for kind in Kind]), help="Only jobs of this kind.")
@click.option("--ref", default="", help="Only jobs about this version.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Maximum number of rows.")
@tables.prints(JOBS)
def list_jobs(state: str | None, kind: str | None, ref: str, limit: int) -> None:
    """List jobs, newest first."""
    with session.registry() as registry:
        items, total = session.first_items(partial(registry.jobs, state=state or "", kind=kind or "", ref=ref), limit)
    JOBS.print(items, total=total)


@job.command()
@click.argument("job_id", metavar="ID")
@click.option("--wait", is_flag=True, help="Wait until the job has ended, and end as `smoke-test --wait` does.")
def show(job_id: str, wait: bool) -> None:
    """Show a job: state, attempts, worker and result."""
    if not wait:
        session.print_response(lambda registry: registry.job(job_id), _print_job)
        return
    with session.registry(patient=True) as registry:
        _end_with(registry, wait_for(registry, job_id))


@job.command()
@click.argument("job_ids", nargs=-1, required=True, metavar="ID...")
@arguments.reason
@tables.prints(JOBS)
def cancel(job_ids: tuple[str, ...], reason: str) -> None:
    """Cancel queued or running jobs.

    For all that wait: adapter job cancel $(adapter job list --state queued -o name)
    """
    with session.registry() as registry:
        JOBS.print([registry.cancel(job_id, reason) for job_id in job_ids])


def _print_job(job: Job) -> None:
    sources: list[str] = job.payload.get("sources") or []
    output.line(f"{output.strong(job.id)}  {_state(job)}")
    output.facts(
        [
            ("work", f"{job.kind} {job.subject} on {job.base}"),
            ("sources", ", ".join(sources) if len(sources) > 1 else ""),
            ("into", str(job.payload.get("into") or "")),
            ("attempt", f"{job.attempt} of {job.attempts_limit}"),
            ("worker", job.worker),
            ("progress", [f"{output.moment(step.at)}  {step.message}" for step in job.steps] or job.progress),
            ("result", _status(job) if job.state is State.DONE else ""),
            ("notes", list((job.result.get("report") or {}).get("notes", ()))),
            ("priority", str(job.priority) if job.priority else ""),
            ("error", job.error.splitlines()),
            ("created", f"{output.moment(job.created_at)} by {job.created_by}"),
            ("started", output.moment(job.started_at)),
            ("finished", output.moment(job.finished_at)),
        ]
    )


CHANGES: Table[CampaignItem] = Table((
    Column("version", lambda item: item.version),
    Column("before", lambda item: item.before),
    Column("after", lambda item: item.after or item.state),
    Column("summary", lambda item: item.summary, flows=True),
))  # fmt: skip


@click.command("smoke-test", cls=Command)
@click.argument("ref", required=False, type=arguments.REF)
@click.option("--all", "all_versions", is_flag=True, help="Test all versions of the base --base: a campaign.")
@click.option("--base", default="", help="With --all: base model whose versions are tested.")
@click.option("--outdated", is_flag=True, help="With --all: only versions not tested on the base as it is now.")
@click.option("--made-by", "made_by", multiple=True, metavar="TOOL=VERSION",
              help="With --all: only versions not tested with it, such as torch=2.13.0 (repeatable).")  # fmt: skip
@click.option("--campaign", "campaign_id", default="", metavar="ID", help="Show an earlier campaign.")
@click.option("--wait", is_flag=True, help="Wait for the verdicts.")
@arguments.wait_timeout
@click.option("--priority", type=click.IntRange(-PRIORITY_LIMIT, PRIORITY_LIMIT),
              help="Higher runs first; above 0 only for administrators. Default: 0, with --all -10.")  # fmt: skip
def smoke_test(
    ref: Ref | None, all_versions: bool, base: str, outdated: bool, made_by: tuple[str, ...], campaign_id: str,
    wait: bool, timeout: int | None, priority: int | None,
) -> None:  # fmt: skip
    """Have a worker test the version REF on its base, or (--all) every version of a base.

    A campaign skips yanked versions and those whose header does not fit, and runs after new pushes. Waiting ends with
    a table of changed verdicts; with exit 75 once no worker has been at work for ten minutes, or after --wait-timeout
    seconds.
    """
    if (ref is not None) + all_versions + bool(campaign_id) != 1:
        raise click.UsageError("name a version, or use --all with --base, or --campaign")
    if all_versions != bool(base) or ((outdated or made_by) and not all_versions):
        raise click.UsageError("--all needs --base; --base, --outdated and --made-by need --all")
    wait = wait or timeout is not None
    if ref is not None:
        _test_version(ref, wait, timeout, priority or 0)
        return
    with session.registry(patient=wait) as registry:
        if campaign_id:
            campaign = registry.campaign(campaign_id)
        else:
            tools = arguments.pairs(made_by, "--made-by", "TOOL=VERSION")
            options = {} if priority is None else {"priority": priority}
            campaign = registry.start_campaign(
                CampaignRequest(base=names.base_name(base), outdated=outdated, made_by=tools, **options)
            )
        if wait:
            campaign = _wait_for_campaign(registry, campaign, timeout)
    output.result(campaign, lambda: _print_campaign(campaign))
    if wait:
        _exit_by_campaign(campaign)


def _test_version(ref: Ref, wait: bool, timeout: int | None, priority: int) -> None:
    with session.registry(patient=wait) as registry:
        job = registry.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=str(ref), priority=priority))
        if not wait:
            output.result(job, lambda: print_submitted(job))
            return
        _end_with(registry, wait_for(registry, job.id, timeout))


def _end_with(registry: Registry, job: Job) -> None:
    """Print a job that was waited for, of a smoke test with the verdict, and exit by it."""
    if job.kind is not Kind.SMOKE_TEST:
        output.result(job, lambda: _print_job(job))
        exit_by(job, None)
        return
    ref = Ref.parse(job.subject)
    subject = Ref(ref.name, job.subject_digest) if job.subject_digest else ref
    verdicts = [v for v in registry.version(subject).verdicts if v.check is Check.SMOKE]
    verdict = verdicts[-1] if verdicts else None
    output.result({"job": job, "verdict": verdict}, lambda: _print_verdict(job, verdict))
    exit_by(job, verdict)


def _print_verdict(job: Job, verdict: Verdict | None) -> None:
    output.line(f"{output.strong(job.subject)} on {job.base}")
    if job.state is State.DONE and verdict is not None:
        for line in versions.verdict_lines([verdict]):
            output.line(f"  {line}")
    else:
        output.line(f"  {job.id} is {job.state}" + (f": {job.error}" if job.error else ""))


def _wait_for_campaign(registry: Registry, campaign: CampaignView, timeout: float | None) -> CampaignView:
    started = queued_since = time.monotonic()
    noted = False
    if not campaign.finished:
        again = f"Ctrl-C stops waiting; `adapter smoke-test --campaign {campaign.id} --wait` waits again"
        output.note(f"{output.plural(campaign.total, 'version')} of {campaign.base} queued; {again}")
    with click.progressbar(
        length=campaign.total, label="tested", show_pos=True, file=sys.stderr, hidden=not on_terminal()
    ) as bar:
        while not campaign.finished:
            now = time.monotonic()
            if campaign.worker_is_busy is not False:  # None: an older server does not say
                queued_since, noted = now, False
            queued = now - queued_since
            if queued >= waiting.QUEUED_SECONDS if timeout is None else now - started >= timeout:
                condition = "" if campaign.worker_is_busy else ", once a worker runs (`adapter worker`)"
                raise Unavailable(
                    "TRY_LATER",
                    f"campaign {campaign.id} is not finished: {_states(campaign)}",
                    next_step=f"it continues{condition}: `adapter smoke-test --campaign {campaign.id} --wait`",
                )
            if queued >= NO_WORKER_NOTE_SECONDS and not noted:
                output.note(_no_worker_note())
                noted = True
            time.sleep(CAMPAIGN_POLL_SECONDS)
            campaign = registry.campaign(campaign.id, patient=True)
            pending = campaign.states.get(State.QUEUED, 0) + campaign.states.get(State.RUNNING, 0)
            bar.update(campaign.total - pending - bar.pos)
    return campaign


def _states(campaign: CampaignView) -> str:
    return ", ".join(f"{count} {state}" for state, count in campaign.states.items()) or "nothing to do"


def _print_campaign(campaign: CampaignView) -> None:
    total = output.plural(campaign.total, "version")
    output.line(f"{output.strong(campaign.id)} on {campaign.base}: {total}, {_states(campaign)}")
    if not campaign.finished:
        output.line(output.faint(f"  adapter smoke-test --campaign {campaign.id} shows its progress"))
        return
    if not campaign.items:
        output.line("No verdict changed.")
        return
    for text in CHANGES.lines(campaign.items, width=None):
        output.line(text)
    if campaign.changed > len(campaign.items):
        output.line(output.faint(f"  and {campaign.changed - len(campaign.items)} more"))


def _exit_by_campaign(campaign: CampaignView) -> None:
    if any(item.after == Outcome.FAIL for item in campaign.items):
        output.exit_with(output.REFUSED)
    if campaign.states.get(State.FAILED, 0):
        raise Unavailable(
            "TRY_LATER",
            f"{output.plural(campaign.states[State.FAILED], 'version')} could not be tested",
            next_step="check the worker, then start another campaign",
        )
