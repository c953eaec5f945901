"""`adapter agent`: keeps the engines of this node in sync with an alias of every adapter of a base.

- SIGTERM and Ctrl-C end the agent; the engines keep serving.
- Engines share only the store: a failure of one delays no other.
- A second agent that follows something else with the same engine or alias file does not start.
"""

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
from registry.serving.agent.reconciler import DRAIN_SECONDS, Reconciler
from registry.serving.engines import parse
from registry.serving.engines.openai import KEY_VARIABLE
from registry.serving.store import eviction, in_use
from registry.serving.store.local_store import LocalStore

from .console import arguments, logs, output, session
from .console.options import Command

SIGNAL_CHECK_SECONDS = 0.5
"""Python handles a signal only in the main thread, which therefore must wake up."""
Say = Callable[[str], None]


@click.command(cls=Command)
@click.option("--sync", "engines", required=True, multiple=True, metavar="KIND=LOCATION",
              help="Engine to keep in sync: vllm=URL, sglang=URL, llama.cpp=URL, nim=PATH or dir=PATH.")  # fmt: skip
@click.option("--base", required=True, help="Registered base that the engines serve.")
@click.option("--alias", default="prod", show_default=True, help="Alias to follow.")
@click.option("--dir", "folder", required=True, type=click.Path(path_type=Path), help="Folder of the adapter store.")
@click.option("--engine", "profiles", multiple=True,
              help="Version and settings of an engine; applies to all engines of that kind (repeatable).")  # fmt: skip
@click.option("--drain", type=arguments.DURATION_OR_NONE, default=f"{DRAIN_SECONDS:g}s", show_default=True,
              help="Time for which an old version stays loaded after the switch.")  # fmt: skip
@click.option("--keep-unused", type=arguments.DURATION_OR_NONE, default=f"{eviction.KEEP_DAYS:g}d",
              show_default=True, help="Time for which an unused version stays in the store.")  # fmt: skip
@click.option("--keep-bytes", type=arguments.SIZE,
              help="Above this size, such as 500GB, delete unused versions an hour after their last use.")  # fmt: skip
@click.option("--node", default="", help="Name of this node. Default: the host name.")
@click.option("--metrics-port", "port", default="", metavar="[HOST:]PORT", help="Serve Prometheus metrics here.")
@click.option("--once", is_flag=True,
              help="Run one pass and exit; 6 if an adapter is not ready, 4 if there is none, 70 if one is damaged "
                   "or wrong.")  # fmt: skip
def agent(
    engines: tuple[str, ...], base: str, alias: str, folder: Path, profiles: tuple[str, ...], drain: int,
    keep_unused: int, keep_bytes: int | None, node: str, port: str, once: bool,
) -> None:  # fmt: skip
    """Keep engines in sync with an alias of every adapter of a base.

    Each version is verified, loaded under its own name and checked before the switch; then the old one is drained and
    unloaded. If the registry is unreachable, the agent continues with what it has. Stopping the agent leaves the engine
    as it is. Run one agent per engine and DIR. API keys of engines come from ADAPTER_ENGINE_KEY.
    """
    say, warn = logs.reporters("agent", once=once)
    task = SyncTask(str(names.base_name(base)), names.alias(alias), folder, drain, node or heartbeat.this_node())
    titles = {parse.title(engine): engine for engine in engines}
    if len(titles) != len(engines):
        raise click.UsageError("two engines have one kind and one port: run an agent for each, with --node and a --dir")
    profile_of = {engine: _profile(engine, engines, profiles) for engine in engines}
    with session.registry() as registry, contextlib.ExitStack() as resources:
        if logs.writes_lines(once=once):
            registry.connection.on_wait = say  # an outage itself is a warning, when it begins and when it ends
        alias_files = [_alias_file(title) for title in titles]
        for file in [_alias_file(""), *alias_files] if len(titles) == 1 else alias_files:
            _claim(resources, task, file)
        metrics_of = {title: metrics.Metrics() for title in titles}
        agents = {
            title: _make_agent(
                registry, task, engine, profile_of[engine], metrics_of[title], say, warn, only=len(titles) == 1
            )
            for title, engine in titles.items()
        }
        if port:
            say(f"metrics: {resources.enter_context(metrics.serve(metrics_of, port))}")
        limits = eviction.EvictionLimits(
            keep_unused / eviction.DAY_SECONDS, math.inf if keep_bytes is None else keep_bytes
        )
        evictor = eviction.Evictor(LocalStore(folder), limits, eviction.leases_of(registry, task.node), say)
        if once:
            _run_once(agents, evictor)
        else:
            say(f"following {task.alias!r} of {task.base!r} on {task.node}: {', '.join(titles)}")
            _run(list(agents.values()), evictor)
            say("stopped")
            output.result({"items": []}, lambda: None)


@dataclass(frozen=True)
class SyncTask:
    """What all engines of a node have in common."""

    base: str
    alias: str
    folder: Path
    drain: int
    node: str


def _alias_file(title: str) -> str:
    return f"aliases-{title}.json" if title else "aliases.json"


def _claim(resources: contextlib.ExitStack, task: SyncTask, file: str) -> None:
    """Two agents that follow different aliases with one engine or file would undo each other's work."""
    purpose = f"the alias {task.alias!r} of {task.base!r}"
    other = resources.enter_context(in_use.follow(task.folder, file, purpose))
    if other:
        raise click.UsageError(
            f"another agent uses {task.folder / file} for {other}: an engine has one agent, and agents that follow "
            "different aliases need a --dir each"
        )


def _profile(engine: str, engines: Sequence[str], profiles: Sequence[str]) -> str:
    """The profile of this engine: the only profile of an only engine, else the one of its kind."""
    if len(engines) == len(profiles) == 1:
        return profiles[0]
    matching = [profile for profile in profiles if profile.partition("==")[0] == engine.partition("=")[0]]
    if len(matching) > 1:
        raise click.UsageError(f"--engine: {matching[0]} and {matching[1]} are of one kind; run an agent for each")
    return matching[0] if matching else ""


def _with_prefix(title: str, say: Say) -> Say:
    return lambda line: say(f"{title}: {line}")


def _make_agent(
    registry: Registry, task: SyncTask, engine: str, profile: str, engine_metrics: metrics.Metrics, say: Say,
    warn: Say, *, only: bool,
) -> Agent:  # fmt: skip
    title = parse.title(engine)
    task_id = Digest.of(f"{task.base} {task.alias}".encode()).hex[:8]
    store = LocalStore(task.folder, user=f"{task.node}-{title}-{task_id}")
    if not only:
        say, warn = _with_prefix(title, say), _with_prefix(title, warn)
    reconciler = Reconciler(
        parse.engine(engine, os.environ.get(KEY_VARIABLE, "").strip()), registry, store, drain_seconds=task.drain,
        metrics=engine_metrics, alias_file=_alias_file("" if only else title), say=say,
    )  # fmt: skip
    reporter = heartbeat.Heartbeat(
        registry, reconciler.slots, node=task.node, engine=title, base=task.base, alias=task.alias, profile=profile,
        metrics=engine_metrics, say=say, warn=warn,
    )  # fmt: skip
    return Agent(
        registry, reconciler, store, base=task.base, alias=task.alias, profile=profile, say=say, warn=warn,
        heartbeat=reporter,
    )  # fmt: skip


def _run_once(agents: Mapping[str, Agent], evictor: eviction.Evictor) -> None:
    """One pass over every engine. The first error is raised after the last engine."""
    items: list[dict[str, Any]] = []
    first_error: RegistryError | None = None
    for title, agent in agents.items():
        try:
            agent.fetch()
            items += [{"engine": title, **asdict(slot)} for slot in agent.step()]
        except RegistryError as e:
            first_error = first_error or e
        agent.send_heartbeat()
    if first_error is not None:
        raise first_error
    evictor.once()
    output.result({"items": items}, lambda: None)
    if any(agent.has_no_adapters() for agent in agents.values()):
        output.exit_with(output.NOT_FOUND)
    if any(item["corrupt"] for item in items):
        output.exit_with(output.CORRUPT)
    output.exit_with(0 if all(item["state"] == "ready" for item in items) else output.REFUSED)


def _run(agents: Sequence[Agent], evictor: eviction.Evictor) -> None:
    """Run until a signal: each engine in its own thread, so that one that hangs delays no other."""
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        for agent in agents:
            agent.wake()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    threading.Thread(target=evictor.run, args=(stop,), name="eviction", daemon=True).start()
    threads = [threading.Thread(target=agent.run, args=(stop,)) for agent in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(SIGNAL_CHECK_SECONDS)
