"""`adapter agent`: keep an engine on this box at what an alias of every adapter of a base points at.

Invariants
- SIGTERM and Ctrl-C end the agent and leave the engine as it is: it goes on serving.
- With `--once` it is one pass: exit 6 when an adapter of the roster is not ready.

Example
    $ adapter agent --engine vllm=http://127.0.0.1:8000 --base smollm2 --alias prod --dir /srv/adapters
    acme/support  acme-support-v3  ready
"""

from __future__ import annotations

import signal
import threading
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import click

from cli import output, session
from registry import names
from registry.serving import engines
from registry.serving.agent import Agent
from registry.serving.shelf import Shelf
from registry.serving.station import DRAIN_SECONDS, Station


@click.command()
@click.option("--engine", required=True, metavar="KIND=URL", help="The engine: vllm=http://… or sglang=http://…")
@click.option("--base", required=True, help="The registered base that the engine serves.")
@click.option("--alias", default="prod", show_default=True, help="Serve what this alias points at.")
@click.option("--dir", "folder", required=True, type=click.Path(path_type=Path), help="Where versions are kept.")
@click.option("--profile", default="", metavar="PROFILE", help="The engine's version and settings, to be judged by.")
@click.option("--drain", type=click.FloatRange(min=0), default=DRAIN_SECONDS, show_default=True, metavar="SECONDS",
              help="How long an old version stays loaded after the switch.")  # fmt: skip
@click.option("--once", is_flag=True, help="One pass, then stop.")
@output.json_option
def agent(engine: str, base: str, alias: str, folder: Path, profile: str, drain: float, once: bool) -> None:
    """Keep an engine at what an alias of every adapter of a base points at."""
    shelf, found = Shelf(folder), engines.engine(engine)
    say = (lambda _line: None) if output.as_json() else click.echo
    with session.registry() as registry:
        station = Station(found, registry, shelf, drain_seconds=drain)
        keeping = Agent(
            registry,
            station,
            shelf,
            base=str(names.base_name(base)),
            alias=names.alias(alias),
            profile=profile,
            say=say,
        )
        if once:
            keeping.fetch()
            slots = keeping.step()
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
