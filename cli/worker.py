"""`adapter worker`: takes jobs from the registry and tests adapters on their base.

This process does not import torch; each base lives in its own model process (registry/worker/model_process/host.py).
SIGTERM and Ctrl-C finish or return the running job and leave no process behind.
"""

import contextlib
import importlib.util
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Protocol

import click

from registry import lazy, names
from registry.client import registries
from registry.client.registry import Registry
from registry.errors import RegistryError
from registry.jobs import State
from registry.worker.devices import select_device
from registry.worker.loop import RunSummary, Worker
from registry.worker.model.sources import Sources
from registry.worker.model_process.client import Pool, ProcessLimits

from .console import arguments, logs, output, session
from .console.options import Command
from .console.progress import ProgressLine

PACKAGES = ("torch", "safetensors", "peft", "transformers")
"""Imports of a model process, checked before a job is claimed."""
DEFAULTS = ProcessLimits()


@click.command(cls=Command)
@click.option("--once", is_flag=True, help="Exit when no suitable job is left, retries included.")
@click.option(
    "--base", "bases", multiple=True, metavar="NAME[=DIR]",
    help="Base to serve, with its folder on this machine (repeatable). Default: bases whose source is a folder here.",
)  # fmt: skip
@click.option("--deadline", type=arguments.DURATION, default=f"{DEFAULTS.deadline_seconds:g}s",
              show_default=True, help="Time after which the test of an adapter is killed.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), default=DEFAULTS.threads, show_default=True,
              help="CPU threads per adapter.")  # fmt: skip
@click.option("--answer-tokens", "answers", type=click.IntRange(0, 64), default=DEFAULTS.answer_tokens,
              show_default=True, metavar="TOKENS", help="Tokens of each answer in reports.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
              help="Device for bases.")  # fmt: skip
@click.option("--ray", "address", default="", metavar="ADDRESS", help="Address of a Ray cluster to run on.")
@click.option("--actors", type=click.IntRange(1, 1000), default=1, show_default=True,
              help="With --ray: workers per base.")  # fmt: skip
@click.option("--gpus", type=click.FloatRange(0), help="With --ray: GPUs per worker. Default: 1 with cuda.")
def worker(
    once: bool, bases: tuple[str, ...], deadline: int, threads: int, answers: int, device: str, address: str,
    actors: int, gpus: float | None,
) -> None:  # fmt: skip
    """Run a worker: smoke-test adapters on their base, merge and convert.

    A base's weights are checked against its record first. Needs a token with the scope work, and push for merges and
    conversions. With --ray workers run on the nodes of a Ray cluster (extra 'cluster'). Exits 75 if with --once a
    failed job is left for another attempt.
    """
    _require_packages()
    folders = dict(_base(text) for text in bases)
    limits = ProcessLimits(deadline_seconds=deadline, threads=threads, answer_tokens=answers)
    (say, warn), writes_lines = logs.reporters("worker", once=once), logs.writes_lines(once=once)
    error: RegistryError | None = None
    if address:
        summary = _run_on_cluster(address, folders, limits, say, once=once, device=device, actors=actors, gpus=gpus)
    else:
        pool = Pool(device=select_device(device))
        with session.registry() as registry, ProgressLine("jobs") as line:
            progress = _QueueProgress(registry, line, say, warn)
            if writes_lines:
                registry.connection.on_wait = lambda text: line.above(lambda: say(text))
            with Worker(
                registry, Sources(folders), say=progress.report, warn=progress.warn, limits=limits, pool=pool
            ) as worker:
                progress.summary = worker.summary
                _stop_on_signals(worker)
                if not once:
                    say("taking jobs; stop with Ctrl-C")
                try:
                    summary = worker.run(once=once)
                except RegistryError as e:
                    summary, error = worker.summary, e
                    if not (summary.done or summary.failed):
                        raise
    if writes_lines:
        say(f"stopped: {_summary_line(summary)}")
    output.result(asdict(summary), lambda: None if writes_lines else output.line(_summary_line(summary)))
    if once and summary.unfinished:
        output.exit_with(output.TRY_LATER)
    if error is not None:
        raise error


class _QueueProgress:
    """Reports events, and on a terminal how many jobs are done and queued, with one request for each event."""

    def __init__(self, registry: Registry, line: ProgressLine, say: logs.Say, warn: logs.Say) -> None:
        self.summary = RunSummary()
        self._registry, self._line, self._say, self._warn = registry, line, say, warn

    def warn(self, text: str) -> None:
        """Print a warning as an event."""
        self.report(text, self._warn)

    def report(self, text: str, say: logs.Say | None = None) -> None:
        """Print an event above the line, and draw the line again."""
        self._line.above(lambda: (say or self._say)(text))
        ended = self.summary.done + self.summary.failed
        if self._line.is_watched and ended:
            with contextlib.suppress(RegistryError):  # the worker itself says that the registry is away
                queued = self._registry.jobs(state=State.QUEUED, limit=1, count=True).total or 0
                self._line.count_items(ended, ended + queued)


def _run_on_cluster(
    address: str, folders: dict[str, Path | None], limits: ProcessLimits, say: Callable[[str], None], *, once: bool,
    device: str, actors: int, gpus: float | None,
) -> RunSummary:  # fmt: skip
    cluster = lazy.load("registry.worker.cluster:Cluster", "cluster", "adapter worker --ray")
    plan = lazy.load("registry.worker.cluster:ClusterPlan", "cluster", "adapter worker --ray")
    target = registries.target()
    if target.embedded:
        raise click.UsageError("--ray needs a registry that the nodes can reach: run `adapter login URL` first")
    if not folders:
        raise click.UsageError("--ray needs --base NAME[=DIR]")
    device = "cpu" if device == "auto" and not gpus else "cuda" if device == "auto" else device
    gpus = (1.0 if device == "cuda" else 0.0) if gpus is None else gpus
    workers = plan(
        target.url, target.token, folders, actors=actors, cpus=limits.threads, gpus=gpus, device=device, limits=limits
    )
    with cluster(address, workers, say=say) as running:
        _stop_on_signals(running)
        summary: RunSummary = running.run(once=once)
    return summary


def _base(text: str) -> tuple[str, Path | None]:
    name, equals, folder = text.partition("=")
    if equals and not folder:
        raise click.BadParameter(f"{text!r} names no folder after '='", param_hint="--base")
    return names.base_name(name), Path(folder) if equals else None


def _require_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise lazy.missing_extra("adapter worker", "worker", missing[0])


class Stoppable(Protocol):
    def stop(self) -> None:
        """Finish the job in progress, and take no other."""


def _stop_on_signals(worker: Stoppable) -> None:
    def stop(_number: int, _frame: FrameType | None) -> None:
        worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _summary_line(summary: RunSummary) -> str:
    failed = f", {output.plural(summary.failed, 'attempt')} failed" if summary.failed else ""
    waiting = (
        f"; {output.plural(summary.unfinished, 'failed job')} left for another attempt" if summary.unfinished else ""
    )
    return (
        f"{output.plural(summary.done, 'job')} done{failed}{waiting}; {output.plural(summary.base_loads, 'base load')}"
    )
