"""`adapter worker`: take jobs from the registry and try adapters on their base, here.

Invariants
- This process holds no torch; each base lives in a model process of its own (registry/worker/model_process/host.py).
- SIGTERM and Ctrl-C end it in order: the running job is finished or given back, and no process stays behind.
- Standard output tells one line for each job; with `--json` it is one JSON document at the end.
"""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Protocol

import click

from registry import names
from registry.worker.devices import select_device
from registry.worker.loop import RunSummary, Worker
from registry.worker.model.sources import Sources
from registry.worker.model_process.client import ProcessLimits
from registry.worker.model_process.pool import Pool

from . import main, output, session

PACKAGES = ("torch", "safetensors", "peft", "transformers")
"""What a model process imports; checked before a job is claimed."""
DEFAULTS = ProcessLimits()


@click.command()
@click.option("--once", is_flag=True, help="Exit when no suitable job is left.")
@click.option(
    "--base", "bases", multiple=True, metavar="NAME[=DIR]",
    help="Base to serve, with its folder on this machine (repeatable). Default: bases whose source is a folder here.",
)  # fmt: skip
@click.option("--deadline", type=click.FloatRange(min=1), default=DEFAULTS.deadline_seconds, show_default=True,
              metavar="SECONDS", help="Seconds after which the test of an adapter is killed.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), default=DEFAULTS.threads, show_default=True,
              help="CPU threads per adapter.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
              help="Device for bases.")  # fmt: skip
@click.option("--ray", "address", default="", metavar="ADDRESS", help="Address of a Ray cluster to run on.")
@click.option("--actors", type=click.IntRange(1, 1000), default=1, show_default=True,
              help="With --ray: workers per base.")  # fmt: skip
@click.option("--gpus", type=click.FloatRange(0), help="With --ray: GPUs per worker. Default: 1 with cuda.")
@output.json_option
def worker(
    once: bool, bases: tuple[str, ...], deadline: float, threads: int, device: str, address: str, actors: int,
    gpus: float | None,
) -> None:  # fmt: skip
    """Run a worker: smoke-test adapters on their base, merge and convert.

    A base's weights are checked against its record first. Needs a token with the scope work, and push for merges and
    conversions. With --ray workers run on the nodes of a Ray cluster (extra 'cluster').

    \b
    adapter worker --base smollm2=models/SmolLM2-135M-Instruct
    """
    _demand_packages()
    folders = dict(_base(text) for text in bases)
    limits = ProcessLimits(deadline_seconds=deadline, threads=threads)
    say: Callable[[str], None] = _silent if output.as_json() else click.echo
    if address:
        tally = _on_a_cluster(address, folders, limits, say, once=once, device=device, actors=actors, gpus=gpus)
        output.answer(asdict(tally), lambda: click.echo(_in_words(tally)))
        return
    pool = Pool(device=select_device(device))
    with (
        session.registry() as registry,
        Worker(registry, Sources(folders), say=say, limits=limits, pool=pool) as worker,
    ):
        _stop_on_signals(worker)
        if not once:
            say("taking jobs; stop with Ctrl-C")
        tally = worker.run(once=once)
    output.answer(asdict(tally), lambda: click.echo(_in_words(tally)))


def _on_a_cluster(
    address: str, folders: dict[str, Path | None], limits: ProcessLimits, say: Callable[[str], None], *, once: bool,
    device: str, actors: int, gpus: float | None,
) -> RunSummary:  # fmt: skip
    """The same work on a Ray cluster. What the cluster's nodes need of a machine, they look for there."""
    cluster = main.load("registry.worker.cluster", "Cluster", extra="cluster", what="adapter worker --ray")
    plan = main.load("registry.worker.cluster", "Plan", extra="cluster", what="adapter worker --ray")
    where = session.target()
    if where.embedded:
        raise click.UsageError("--ray needs a registry that the nodes can reach: run `adapter login URL` first")
    if not folders:
        raise click.UsageError("--ray needs to know the bases: repeat --base NAME[=DIR]")
    device = "cpu" if device == "auto" and not gpus else "cuda" if device == "auto" else device
    gpus = (1.0 if device == "cuda" else 0.0) if gpus is None else gpus
    what = plan(
        where.url, where.token, folders, actors=actors, cpus=limits.threads, gpus=gpus, device=device, limits=limits
    )
    with cluster(address, what, say=say) as running:
        _stop_on_signals(running)
        tally: RunSummary = running.run(once=once)
    return tally


def _base(text: str) -> tuple[str, Path | None]:
    name, equals, folder = text.partition("=")
    if equals and not folder:
        raise click.BadParameter(f"{text!r} names no folder after '='", param_hint="--base")
    return names.base_name(name), Path(folder) if equals else None


def _demand_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise main.MissingExtra(
            f"adapter worker needs the extra 'worker' ({missing[0]} is not installed): "
            "pip install 'adapter-registry[worker]'"
        )


class Stoppable(Protocol):
    def stop(self) -> None: ...


def _stop_on_signals(worker: Stoppable) -> None:
    def stop(_number: int, _frame: FrameType | None) -> None:
        worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _silent(_line: str) -> None:
    """With --json nothing is told on the way."""


def _in_words(tally: RunSummary) -> str:
    failed = f", {output.plural(tally.failed, 'attempt')} failed" if tally.failed else ""
    return f"{output.plural(tally.done, 'job')} done{failed}; {output.plural(tally.base_loads, 'base load')}"
