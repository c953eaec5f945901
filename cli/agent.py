"""`adapter agent`: keep the engines of this node at what an alias of every adapter of a base points at.

Invariants
- SIGTERM and Ctrl-C end the agent and leave the engines as they are: they go on serving.
- Several engines share the shelf and nothing else: what is wrong with one holds up no other.
- A second agent that follows something else with the same engine or the same file of aliases does not start.
- With `--once` it is one pass: exit 6 when an adapter of the desired state is not ready.
- It tells the registry what this node serves (`adapter fleet`), and Prometheus where a port is given.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click

from registry import names
from registry.client.registry import Registry
from registry.digest import Digest
from registry.errors import RegistryError
from registry.serving.agent import heartbeat, metrics
from registry.serving.agent.agent import Agent
from registry.serving.agent.reconciler import DRAIN_SECONDS, Station
from registry.serving.engines import parse
from registry.serving.engines.openai import KEY_VARIABLE
from registry.serving.store import eviction, in_use
from registry.serving.store.store import Shelf

from . import output, session

LOOK_SECONDS = 0.5
"""A signal that another thread was given is handled by the main one, which must not sleep for ever."""


@click.command()
@click.option(
    "--engine",
    "engines",
    required=True,
    multiple=True,
    metavar="KIND=PLACE",
    help="Engine: vllm=URL, sglang=URL, llama.cpp=URL, nim=PATH or dir=PATH (repeatable).",
)
@click.option("--base", required=True, help="Registered base that the engines serve.")
@click.option("--alias", default="prod", show_default=True, help="Alias to follow.")
@click.option("--dir", "folder", required=True, type=click.Path(path_type=Path), help="Folder of the adapter store.")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="PROFILE",
    help="Version and settings of an engine; applies to all engines of that kind (repeatable).",
)
@click.option(
    "--drain",
    type=click.FloatRange(min=0),
    default=DRAIN_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Seconds for which an old version stays loaded after the switch.",
)
@click.option(
    "--keep-days",
    type=click.FloatRange(min=0),
    default=eviction.KEEP_DAYS,
    show_default=True,
    metavar="DAYS",
    help="Days for which an unused version stays in the store; inf: always.",
)
@click.option(
    "--keep-bytes",
    type=click.IntRange(min=0),
    help="Above this size, delete unused versions earlier, an hour after their last use.",
)
@click.option("--node", default="", help="Name of this node. Default: the host name.")
@click.option("--metrics-port", "port", default="", metavar="[HOST:]PORT", help="Serve Prometheus metrics here.")
@click.option("--once", is_flag=True, help="Run one pass and exit; 6 if an adapter is not ready.")
@output.json_option
def agent(
    engines: tuple[str, ...], base: str, alias: str, folder: Path, profiles: tuple[str, ...], drain: float,
    keep_days: float, keep_bytes: int | None, node: str, port: str, once: bool,
) -> None:  # fmt: skip
    """Keep engines in sync with what an alias of every adapter of a base points at.

    Each version is verified, loaded under its own name, checked, switched to; the old one is drained and unloaded.
    Without the registry the agent continues with what it has. Stopping it leaves the engine as it is. One agent per
    engine and DIR. API keys of engines come from ADAPTER_ENGINE_KEY.

    \b
    adapter agent --engine vllm=http://127.0.0.1:8000 --base smollm2 --dir /srv/adapters
    """
    say = (lambda _line: None) if output.as_json() else click.echo
    followed = Followed(str(names.base_name(base)), names.alias(alias), folder, drain, node or heartbeat.this_node())
    titles = {parse.title(engine): engine for engine in engines}
    if len(titles) != len(engines):
        raise click.UsageError("two engines have one kind and one port: run an agent for each, with --node and a --dir")
    judged = {engine: _profile(engine, engines, profiles) for engine in engines}
    with session.registry() as registry, contextlib.ExitStack() as held:
        for file in [_alias_file(""), *map(_alias_file, titles)] if len(titles) == 1 else map(_alias_file, titles):
            _keep_alone(held, followed, file)
        counted = {title: metrics.Metrics() for title in titles}
        agents = [
            _made(registry, followed, engine, judged[engine], counted[title], say, alone=len(titles) == 1)
            for title, engine in titles.items()
        ]
        if port:
            say(f"metrics: {held.enter_context(metrics.served(counted, port))}")
        limits, leases = (
            eviction.EvictionLimits(keep_days, math.inf if keep_bytes is None else keep_bytes),
            eviction.leases_of(registry, followed.node),
        )
        sweeper = eviction.Sweeper(Shelf(folder), limits, leases, say)
        if once:
            _pass_once(dict(zip(titles, agents, strict=True)), sweeper)
        else:
            _keep(agents, sweeper)
            output.answer({"items": []}, lambda: None)


@dataclass(frozen=True)
class Followed:
    """What all engines of a node have in common."""

    base: str
    alias: str
    folder: Path
    drain: float
    node: str


def _alias_file(title: str) -> str:
    return f"aliases-{title}.json" if title else "aliases.json"


def _keep_alone(held: contextlib.ExitStack, followed: Followed, file: str) -> None:
    """Two agents that follow different things with one engine or one file would undo each other's work."""
    mine = f"the alias {followed.alias!r} of {followed.base!r}"
    other = held.enter_context(in_use.followed(followed.folder, file, mine))
    if other:
        raise click.UsageError(
            f"another agent keeps {followed.folder / file} for {other}: an engine has one agent, and agents that "
            "follow different things have a --dir each"
        )


def _profile(engine: str, engines: Sequence[str], profiles: Sequence[str]) -> str:
    """The profile of this engine: the only one of an only engine, else the one of its kind."""
    if len(engines) == len(profiles) == 1:
        return profiles[0]
    fitting = [profile for profile in profiles if profile.partition("==")[0] == engine.partition("=")[0]]
    if len(fitting) > 1:
        raise click.UsageError(f"--profile: {fitting[0]} and {fitting[1]} are of one kind; run an agent for each")
    return fitting[0] if fitting else ""


def _under(title: str, say: Callable[[str], None]) -> Callable[[str], None]:
    return lambda line: say(f"{title}: {line}")


def _made(
    registry: Registry, followed: Followed, engine: str, profile: str, counted: metrics.Metrics,
    say: Callable[[str], None], *, alone: bool,
) -> Agent:  # fmt: skip
    title = parse.title(engine)
    followed_as = Digest.of(f"{followed.base} {followed.alias}".encode()).hex[:8]
    shelf = Shelf(followed.folder, user=f"{followed.node}-{title}-{followed_as}")
    say = say if alone else _under(title, say)
    station = Station(
        parse.engine(engine, os.environ.get(KEY_VARIABLE, "").strip()), registry, shelf,
        drain_seconds=followed.drain, metrics=counted,
        alias_file=_alias_file("" if alone else title),
    )  # fmt: skip
    telling = heartbeat.Reporter(
        registry, station.slots, node=followed.node, engine=title, base=followed.base, alias=followed.alias,
        profile=profile, metrics=counted, say=say,
    )  # fmt: skip
    return Agent(
        registry, station, shelf, base=followed.base, alias=followed.alias, profile=profile, say=say, reporter=telling
    )


def _pass_once(agents: Mapping[str, Agent], sweeper: eviction.Sweeper) -> None:
    """One pass over each; an engine that is away keeps no other one waiting, and its error is told at the end."""
    items: list[dict[str, Any]] = []
    wrong: RegistryError | None = None
    for title, keeping in agents.items():
        try:
            keeping.fetch()
            items += [{"engine": title, **asdict(slot)} for slot in keeping.step()]
        except RegistryError as e:
            wrong = wrong or e
        keeping.report()
    if wrong is not None:
        raise wrong
    sweeper.once()
    output.answer({"items": items}, lambda: None)
    behind = any(item["state"] != "ready" for item in items)
    click.get_current_context().exit(output.REFUSED if behind else 0)


def _keep(agents: Sequence[Agent], sweeper: eviction.Sweeper) -> None:
    """Until a signal comes: each engine in a thread of its own, so that one that hangs holds up no other."""
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        for keeping in agents:
            keeping.wake()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    threading.Thread(target=sweeper.run, args=(stop,), name="sweep", daemon=True).start()
    threads = [threading.Thread(target=keeping.run, args=(stop,)) for keeping in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(LOOK_SECONDS)
