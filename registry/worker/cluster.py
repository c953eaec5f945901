"""`adapter worker --ray`: warm workers on the nodes of a Ray cluster, for each base as many as asked for.

    this process ──▶ Ray ──▶ actor: Worker for one base ──HTTP──▶ registry

Invariants
- Ray places, restarts and spreads; which job is whose is the registry's to say, by leases. So a killed actor or node
  loses no job: its lease runs out, and another actor, or the same one restarted elsewhere, takes the job again.
- An actor runs the same `Worker` as one machine does, with a token and one base; it holds one base load.
- A base's folder must be readable under the same path on the nodes, or by the mapping that was given.
- The token travels to the actors through the cluster: give it the scopes `work` and `pull`, and nothing more.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray

from registry.client.registry import Registry
from registry.worker.devices import CPU
from registry.worker.loop import RunSummary, Worker
from registry.worker.model.sources import Sources
from registry.worker.model_process.client import ProcessLimits
from registry.worker.model_process.pool import Pool

ASK_EVERY_SECONDS = 1.0
LOST = (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError, ray.exceptions.NodeDiedError)


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """What is to run: bases by name (with a folder, or None for "where the registry says") and how many actors each."""

    url: str
    token: str
    bases: Mapping[str, Path | None]
    actors: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    device: str = CPU
    limits: ProcessLimits = field(default_factory=ProcessLimits)


class ClusterActor:
    """What an actor runs: one worker for one base. Ray restarts it elsewhere when its process or node dies."""

    def __init__(self, plan: ClusterPlan, base: str) -> None:
        self._plan, self._base = plan, base
        self._worker: Worker | None = None
        self._lines: list[str] = []

    def run(self, *, once: bool) -> RunSummary:
        """Work until `stop`, or with `once` until no job of the base is left."""
        plan = self._plan
        name = f"ray:{ray.get_runtime_context().get_node_id()[:8]}:{os.getpid()}"
        sources = Sources({self._base: plan.bases[self._base]})
        with (
            Registry(plan.url, plan.token) as registry,
            Worker(
                registry, sources, say=self._lines.append, limits=plan.limits, pool=Pool(device=plan.device), name=name
            ) as worker,
        ):
            self._worker = worker
            return worker.run(once=once)

    def stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()

    def lines(self) -> list[str]:
        """What was said since the last call."""
        lines, self._lines[:] = list(self._lines), []
        return lines

    def where(self) -> tuple[str, int]:
        """The node and the process that this actor runs in now."""
        return ray.get_runtime_context().get_node_id(), os.getpid()


class Cluster:
    """The actors of one plan. `say` gets one line for each thing that happens on any of them."""

    def __init__(self, address: str, plan: ClusterPlan, *, say: Callable[[str], None]) -> None:
        self._say = say
        self._stopping = threading.Event()
        self._mine = not ray.is_initialized()
        if self._mine:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace="adapter-registry")
        actor = ray.remote(ClusterActor).options(
            num_cpus=plan.cpus, num_gpus=plan.gpus, max_restarts=-1, max_task_retries=-1, max_concurrency=4,
            scheduling_strategy="SPREAD",
        )  # fmt: skip
        self.actors: list[Any] = [actor.remote(plan, base) for base in plan.bases for _ in range(plan.actors)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for actor in self.actors:
            ray.kill(actor)
        if self._mine:
            ray.shutdown()

    def stop(self) -> None:
        """End after the running jobs. May be called from a signal handler."""
        self._stopping.set()

    def run(self, *, once: bool = False) -> RunSummary:
        """Until every actor has ended: with `once` when no job is left, else after `stop`. The sum of their tallies."""
        waiting = {actor.run.remote(once=once): actor for actor in self.actors}
        tally, reported = RunSummary(), False
        while waiting:
            if self._stopping.is_set() and not reported:
                reported = True
                for actor in waiting.values():
                    actor.stop.remote()
            ended, _ = ray.wait(list(waiting), timeout=ASK_EVERY_SECONDS)
            self._tell(list(waiting.values()))
            for reference in ended:
                del waiting[reference]
                _add(tally, ray.get(reference))
        return tally

    def _tell(self, actors: list[Any]) -> None:
        for actor in actors:
            try:
                for line in ray.get(actor.lines.remote(), timeout=ASK_EVERY_SECONDS):
                    self._say(line)
            except (*LOST, ray.exceptions.GetTimeoutError):  # it is being restarted, or starts
                continue


def _add(tally: RunSummary, other: RunSummary) -> None:
    tally.done += other.done
    tally.failed += other.failed
    tally.base_loads += other.base_loads
