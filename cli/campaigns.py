"""`adapter revalidate`: have every version of a base, or those that are affected, tried again, and see what changed.

Invariants
- Waiting asks the registry; Ctrl-C ends the waiting, not the campaign. `--campaign ID`, which is told before the
  waiting begins, waits for it again.
- Exits 6 when a version now fails that did not fail before, 75 when one could not be judged.
"""

from __future__ import annotations

import time

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cli import output, session
from cli.jobs import REMARK_AFTER_SECONDS
from registry import names
from registry.api.jobs import CampaignView, RevalidateRequest
from registry.client.evaluation import Judging
from registry.errors import Unavailable
from registry.evaluation.verdicts import Outcome
from registry.jobs import State

ASK_EVERY_SECONDS = 1.0


@click.command()
@click.option("--base", default="", help="Base model whose versions are tested.")
@click.option("--outdated", is_flag=True, help="Only versions not tested on the base as it is now.")
@click.option("--made-by", "made_by", multiple=True, metavar="TOOL=VERSION",
              help="Only versions not tested with this tool version, such as torch=2.13.0 (repeatable).")  # fmt: skip
@click.option("--campaign", "campaign_id", default="", metavar="ID", help="Wait for an earlier campaign.")
@click.option("--no-wait", is_flag=True, help="Queue the jobs and return.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Stop waiting after this many seconds.")
@output.json_option
def revalidate(
    base: str, outdated: bool, made_by: tuple[str, ...], campaign_id: str, no_wait: bool, timeout: float | None
) -> None:
    """Have workers test the versions of a base again, and show what changed.

    A campaign skips yanked versions and those whose header does not fit, and runs after new pushes.

    \b
    adapter revalidate --base smollm2 --made-by torch=2.13.0
    """
    if bool(base) == bool(campaign_id):
        raise click.UsageError("name the base with --base, or a campaign that was begun before with --campaign")
    with session.versions() as registry:
        judging = Judging(registry)
        if campaign_id:
            view = judging.campaign(campaign_id)
        else:
            request = RevalidateRequest(
                base=names.base_name(base), outdated=outdated, made_by=dict(_tool(text) for text in made_by)
            )
            view = judging.begin(request)
        if not no_wait:
            view = _watch(judging, view, timeout)
    output.answer(view, lambda: _print(view))
    if not no_wait:
        _exit_by(view)


def _tool(text: str) -> tuple[str, str]:
    tool, equals, version = text.partition("=")
    if not (tool and equals and version):
        raise click.BadParameter(f"{text!r} is not TOOL=VERSION", param_hint="--made-by")
    return tool, version


def _watch(judging: Judging, view: CampaignView, timeout: float | None) -> CampaignView:
    began, remarked = time.monotonic(), False
    if not view.finished:
        again = f"Ctrl-C ends the waiting, `adapter revalidate --campaign {view.id}` waits again"
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
                    next_step=f"it goes on; `adapter revalidate --campaign {view.id}` waits for it again",
                )
            if view.states.get(State.QUEUED, 0) == view.total and waited >= REMARK_AFTER_SECONDS and not remarked:
                output.note("it waits for a worker: run `adapter work` where the base's weights are")
                remarked = True
            time.sleep(ASK_EVERY_SECONDS)
            view = judging.campaign(view.id)
            bars.update(task, completed=view.total - _open(view))
    return view


def _open(view: CampaignView) -> int:
    return view.states.get(State.QUEUED, 0) + view.states.get(State.RUNNING, 0)


def _states(view: CampaignView) -> str:
    return ", ".join(f"{count} {state}" for state, count in view.states.items()) or "nothing to do"


def _print(view: CampaignView) -> None:
    click.echo(f"{output.strong(view.id)} on {view.base}: {output.plural(view.total, 'version')}, {_states(view)}")
    if not view.finished:
        click.echo(output.faint(f"  adapter revalidate --campaign {view.id} tells how it goes"))
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
    if view.states.get(State.PARKED, 0):
        raise Unavailable(
            "TRY_LATER",
            f"{output.plural(view.states[State.PARKED], 'version')} could not be judged",
            next_step="look at the worker, then begin another campaign",
        )
