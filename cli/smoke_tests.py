"""`adapter smoke-test`: have workers test one version, or every version of a base, and show what changed.

Invariants
- Waiting only asks the registry; Ctrl-C ends the waiting, not the job or the campaign.
- Exits 6 when a version fails (of a campaign: when its verdict changed), 75 when one could not be tested.
"""

from __future__ import annotations

import time

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from registry import names
from registry.api.jobs import CampaignRequest, CampaignView, JobSubmit
from registry.client.registry import Registry
from registry.errors import Unavailable
from registry.evaluation.verdicts import Outcome
from registry.jobs import PRIORITY_LIMIT, Kind, State
from registry.names import Ref

from . import jobs, output, session

ASK_EVERY_SECONDS = 1.0


@click.command("smoke-test")
@click.argument("ref", required=False, type=output.REF)
@click.option("--all", "every", is_flag=True, help="Test all versions of the base given with --base: a campaign.")
@click.option("--base", default="", help="With --all: base model whose versions are tested.")
@click.option("--outdated", is_flag=True, help="With --all: only versions not tested on the base as it is now.")
@click.option("--made-by", "made_by", multiple=True, metavar="TOOL=VERSION",
              help="With --all: only versions not tested with it, such as torch=2.13.0 (repeatable).")  # fmt: skip
@click.option("--campaign", "campaign_id", default="", metavar="ID", help="Show an earlier campaign.")
@click.option("--wait", is_flag=True, help="Wait for the verdicts.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Stop waiting after this many seconds.")
@click.option("--priority", type=click.IntRange(-PRIORITY_LIMIT, PRIORITY_LIMIT),
              help="Jobs with a higher priority run first. Default: 0, with --all -10.")  # fmt: skip
@output.json_option
def smoke_test(
    ref: Ref | None,
    every: bool,
    base: str,
    outdated: bool,
    made_by: tuple[str, ...],
    campaign_id: str,
    wait: bool,
    timeout: float | None,
    priority: int | None,
) -> None:
    """Have a worker test the version REF on its base, or (--all) every version of a base.

    A campaign skips yanked versions and those whose header does not fit, and runs after new pushes. Waiting ends with
    a table of changed verdicts.

    \b
    adapter smoke-test acme/support@3 --wait
    adapter smoke-test --all --base smollm2 --made-by torch=2.13.0 --wait
    """
    if (ref is not None) + every + bool(campaign_id) != 1:
        raise click.UsageError("name a version, or use --all with --base, or --campaign")
    if every != bool(base) or ((outdated or made_by) and not every):
        raise click.UsageError("--all needs --base; --base, --outdated and --made-by need --all")
    wait = wait or timeout is not None
    if ref is not None:
        _test_version(ref, wait, timeout, priority or 0)
        return
    with session.registry() as registry:
        if campaign_id:
            view = registry.campaign(campaign_id)
        else:
            tools = dict(_tool(text) for text in made_by)
            chosen = {} if priority is None else {"priority": priority}
            view = registry.start_campaign(
                CampaignRequest(base=names.base_name(base), outdated=outdated, made_by=tools, **chosen)
            )
        if wait:
            view = _watch(registry, view, timeout)
    output.answer(view, lambda: _print(view))
    if wait:
        _exit_by(view)


def _test_version(ref: Ref, wait: bool, timeout: float | None, priority: int) -> None:
    with session.registry() as registry:
        job = registry.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=str(ref), priority=priority))
        if not wait:
            output.answer(job, lambda: jobs.print_submitted(job))
            return
        job = jobs.wait_for(registry, job.id, timeout)
        verdict = jobs.verdict_of(registry, ref, job)
    output.answer({"job": job, "verdict": verdict}, lambda: jobs.print_verdict(job, verdict))
    jobs.exit_by(job, verdict)


def _tool(text: str) -> tuple[str, str]:
    tool, equals, version = text.partition("=")
    if not (tool and equals and version):
        raise click.BadParameter(f"{text!r} is not TOOL=VERSION", param_hint="--made-by")
    return tool, version


def _watch(registry: Registry, view: CampaignView, timeout: float | None) -> CampaignView:
    began, remarked = time.monotonic(), False
    if not view.finished:
        again = f"Ctrl-C stops waiting; `adapter smoke-test --campaign {view.id} --wait` waits again"
        output.note(f"{output.plural(view.total, 'version')} of {view.base} queued; {again}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not output.on_terminal()) as bars:
        task = bars.add_task(view.base, total=view.total)
        while not view.finished:
            waited = time.monotonic() - began
            if timeout is not None and waited >= timeout:
                raise Unavailable(
                    "TRY_LATER",
                    f"campaign {view.id} is not finished: {_states(view)}",
                    next_step=f"it continues: `adapter smoke-test --campaign {view.id} --wait`",
                )
            if view.states.get(State.QUEUED, 0) == view.total and waited >= jobs.REMARK_AFTER_SECONDS and not remarked:
                output.note("waiting for a worker: run `adapter worker` on a machine with the base's weights")
                remarked = True
            time.sleep(ASK_EVERY_SECONDS)
            view = registry.campaign(view.id)
            bars.update(task, completed=view.total - _open(view))
    return view


def _open(view: CampaignView) -> int:
    return view.states.get(State.QUEUED, 0) + view.states.get(State.RUNNING, 0)


def _states(view: CampaignView) -> str:
    return ", ".join(f"{count} {state}" for state, count in view.states.items()) or "nothing to do"


def _print(view: CampaignView) -> None:
    click.echo(f"{output.strong(view.id)} on {view.base}: {output.plural(view.total, 'version')}, {_states(view)}")
    if not view.finished:
        click.echo(output.faint(f"  adapter smoke-test --campaign {view.id} shows its progress"))
        return
    if not view.items:
        click.echo("Nothing changed.")
        return
    rows = [
        (item.version, item.before or "–", item.after or item.state, output.one_line(item.summary))
        for item in view.items
    ]
    output.table(("version", "before", "after", "says"), rows)
    if view.changed > len(view.items):
        click.echo(output.faint(f"  and {view.changed - len(view.items)} more"))


def _exit_by(view: CampaignView) -> None:
    if any(item.after == Outcome.FAIL for item in view.items):
        click.get_current_context().exit(output.REFUSED)
    if view.states.get(State.FAILED, 0):
        raise Unavailable(
            "TRY_LATER",
            f"{output.plural(view.states[State.FAILED], 'version')} could not be tested",
            next_step="check the worker, then start another campaign",
        )
