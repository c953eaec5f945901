"""`adapter agent`: keep an engine on this box at what an alias of every adapter of a base points at.

Invariants
- SIGTERM and Ctrl-C end the agent and leave the engine as it is: it goes on serving.
- With `--once` it is one pass: exit 6 when an adapter of the roster is not ready.
- It tells the registry what this box serves (`adapter fleet`), and Prometheus where a port is given.

Example
    $ adapter agent --engine vllm=http://127.0.0.1:8000 --base smollm2 --alias prod --dir /srv/adapters
    acme/support  acme-support-v3  ready
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import click

from cli import output, session
from registry import names
from registry.client.api import Registry
from registry.serving import kinds, metrics, reporter
from registry.serving.agent import Agent
from registry.serving.shelf import Shelf
from registry.serving.station import DRAIN_SECONDS, Station


@click.command()
@click.option(
    "--engine",
    required=True,
    metavar="KIND=PLACE",
    help="The engine: vllm=URL, sglang=URL, llama.cpp=URL, nim=PATH or dir=PATH.",
)
@click.option("--base", required=True, help="The registered base that the engine serves.")
@click.option("--alias", default="prod", show_default=True, help="Serve what this alias points at.")
@click.option("--dir", "folder", required=True, type=click.Path(path_type=Path), help="Where versions are kept.")
@click.option("--profile", default="", metavar="PROFILE", help="The engine's version and settings, to be judged by.")
@click.option(
    "--drain",
    type=click.FloatRange(min=0),
    default=DRAIN_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long an old version stays loaded after the switch.",
)
@click.option("--box", default="", help="What this machine is called in the fleet.  [default: its host name]")
@click.option("--metrics-port", "port", default="", metavar="[HOST:]PORT", help="Serve Prometheus metrics there.")
@click.option("--once", is_flag=True, help="One pass, then stop.")
@output.json_option
def agent(
    engine: str, base: str, alias: str, folder: Path, profile: str, drain: float, box: str, port: str, once: bool
) -> None:  # fmt: skip
    """Keep an engine at what an alias of every adapter of a base points at."""
    say = (lambda _line: None) if output.as_json() else click.echo
    with session.registry() as registry, contextlib.ExitStack() as held:
        counted = metrics.Metrics()
        if port:
            say(f"metrics: {held.enter_context(metrics.served(counted, port))}")
        keeping = _made(registry, engine, base, alias, folder, profile, drain, box, counted, say)
        if once:
            keeping.fetch()
            slots = keeping.step()
            keeping.report()
            output.answer({"items": [asdict(slot) for slot in slots]}, lambda: None)
            behind = any(slot.state != "ready" for slot in slots)
            click.get_current_context().exit(output.REFUSED if behind else 0)
        stop = threading.Event()

        def end(_number: int, _frame: FrameType | None) -> None:
            stop.set()
            keeping.wake()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        keeping.run(stop)
        output.answer({"items": []}, lambda: None)


def _made(
    registry: Registry, engine: str, base: str, alias: str, folder: Path, profile: str, drain: float, box: str,
    counted: metrics.Metrics, say: Callable[[str], None],
) -> Agent:  # fmt: skip
    shelf, followed = Shelf(folder), (str(names.base_name(base)), names.alias(alias))
    station = Station(kinds.engine(engine), registry, shelf, drain_seconds=drain, metrics=counted)
    telling = reporter.Reporter(
        registry, station.slots, box=box or reporter.this_box(), engine=kinds.title(engine),
        base=followed[0], alias=followed[1], profile=profile, metrics=counted, say=say,
    )  # fmt: skip
    return Agent(
        registry, station, shelf, base=followed[0], alias=followed[1], profile=profile, say=say, reporter=telling
    )
