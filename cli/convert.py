"""`adapter convert`: a version in another format, as a new version."""

import click

from registry.client import convert as conversion
from registry.client.convert import ConversionOutcome
from registry.jobs import Job, State
from registry.merging.conversions import Conversion, TargetFormat
from registry.names import Ref

from . import jobs
from .console import arguments, output, session
from .console.options import Command


@click.command(cls=Command)
@click.argument("ref", type=arguments.REF)
@click.option(
    "--format", "target", required=True, type=click.Choice([str(t) for t in TargetFormat]), help="Target format."
)
@click.option("--into", default="", metavar="NAME", help="Adapter to create. Default: NAME-FORMAT.")
@click.option("--repair", is_flag=True, help="With --format peft or diffusers: repair wrong prefixes and `.default`.")
@click.option("--message", "-m", default="", help="Message of the new version.")
@click.option("--wait", is_flag=True, help="Wait for the worker.")
@arguments.wait_timeout
def convert(
    ref: Ref, target: str, into: str, repair: bool, message: str, wait: bool, timeout: int | None
) -> None:  # fmt: skip
    """Convert a version to another format, as a new version: canonical, plain, peft, diffusers or gguf.

    If only names change, this machine converts; if values change, a worker does.
    """
    request = Conversion(to=TargetFormat(target), into=into or f"{ref.name}-{target}", repair=repair, message=message)
    with session.registry(patient=True) as registry:
        outcome = conversion.convert(registry, ref, request)
        job = outcome.job
        if job is not None and (wait or timeout is not None):
            job = jobs.wait_for(registry, job.id, timeout)
    if job is None:
        output.result(
            {"version": outcome.pushed and outcome.pushed.version, "report": outcome.report},
            lambda: _print_converted(outcome),
        )
        return
    output.result({"job": job}, lambda: _print_conversion(job))
    if job.state in (State.FAILED, State.CANCELLED):
        output.exit_with(output.TRY_LATER)


def _print_converted(outcome: ConversionOutcome) -> None:
    if outcome.pushed is None or outcome.report is None:
        return
    version = outcome.pushed.version
    output.line(f"{output.strong(f'{version.name}@{version.number}')}  {output.faint(version.digest)}")
    output.line(f"  {outcome.report.message}")


def _print_conversion(job: Job) -> None:
    if job.state is State.DONE:
        report = job.result.get("report") or {}
        output.line(f"{output.strong(str(job.result.get('version')))}  {output.faint(str(job.result.get('digest')))}")
        for line in (report.get("message"), *(report.get("notes") or ())):
            output.line(f"  {line}")
    elif job.error:
        output.line(f"{job.id} is {job.state}: {job.error}")
    else:
        output.line(f"{job.id} {job.state}: values change, so a worker does it (`adapter worker`); --wait waits for it")
