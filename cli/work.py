"""`adapter work`: take jobs from the registry and try adapters on their base, here.

Invariants
- This process holds no torch; each base lives in a keeper process of its own (registry/worker/keeper.py).
- SIGTERM and Ctrl-C end it in order: the running job is finished or given back, and no process stays behind.
- Standard output tells one line for each job; with `--json` it is one JSON document at the end.

Example
    $ adapter work --once --base SmolLM2-135M-Instruct=models/smollm2
    acme/pirate: acts: pass (logits move by up to 21.3, KL 0.61 nats a token)
"""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import click

from cli import main, output, session
from registry import names
from registry.worker.loop import Tally, Worker
from registry.worker.pool import Limits
from registry.worker.sources import Sources

PACKAGES = ("torch", "safetensors", "peft", "transformers")
"""What a keeper imports; looked for before a job is claimed."""
DEFAULTS = Limits()


@click.command()
@click.option("--once", is_flag=True, help="Stop when no job is left that this machine can do.")
@click.option(
    "--base", "bases", multiple=True, metavar="NAME[=DIR]",
    help="A base to work for, and where its weights lie here. Without it: every base whose source is a folder here.",
)  # fmt: skip
@click.option("--deadline", type=click.FloatRange(min=1), default=DEFAULTS.deadline_seconds, show_default=True,
              metavar="SECONDS", help="How long one adapter may take before it is killed.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), default=DEFAULTS.threads, show_default=True,
              help="CPU threads for one adapter.")  # fmt: skip
@output.json_option
def work(once: bool, bases: tuple[str, ...], deadline: float, threads: int) -> None:
    """Take jobs: put each adapter on its base, see whether it acts, and report.

    A base's weights are checked against its registered fingerprint before they are used.
    """
    _demand_packages()
    sources = Sources(dict(_base(text) for text in bases))
    limits = Limits(deadline_seconds=deadline, threads=threads)
    say: Callable[[str], None] = _silent if output.as_json() else click.echo
    with session.registry() as registry, Worker(registry, sources, say=say, limits=limits) as worker:
        _stop_on_signals(worker)
        if not once:
            say("taking jobs; stop with Ctrl-C")
        tally = worker.run(once=once)
    output.answer(asdict(tally), lambda: click.echo(_in_words(tally)))


def _base(text: str) -> tuple[str, Path | None]:
    name, equals, folder = text.partition("=")
    if equals and not folder:
        raise click.BadParameter(f"{text!r} names no folder after '='", param_hint="--base")
    return names.base_name(name), Path(folder) if equals else None


def _demand_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise main.MissingExtra(
            f"adapter work needs the extra 'worker' ({missing[0]} is not installed): "
            "pip install 'adapter-registry[worker]'"
        )


def _stop_on_signals(worker: Worker) -> None:
    def stop(_number: int, _frame: FrameType | None) -> None:
        worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _silent(_line: str) -> None:
    """With --json nothing is told on the way."""


def _in_words(tally: Tally) -> str:
    failed = f", {output.plural(tally.failed, 'attempt')} failed" if tally.failed else ""
    return f"{output.plural(tally.done, 'job')} done{failed}; {output.plural(tally.base_loads, 'base load')}"
