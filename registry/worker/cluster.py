"""`adapter worker --ray`: workers on the nodes of a Ray cluster, a number for each base.

    this process ──▶ Ray ──▶ actor: Worker for one base ──HTTP──▶ registry

Ray places and restarts actors; leases of the registry assign jobs, so a killed actor or node loses no job. A base's
folder must have the same path on all nodes. The token is sent to the actors: give it only the scopes `work` and `pull`.
"""

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import ray

from registry.client.registry import Registry
from registry.worker.devices import CPU
from registry.worker.loop import RunSummary, Worker
from registry.worker.model.sources import Sources
from registry.worker.model_process.client import Pool, ProcessLimits

POLL_SECONDS = 1.0
LOST_ACTOR_ERRORS = (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError, ray.exceptions.NodeDiedError)


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """Bases by name (with a folder, or None for the registered source), and the number of actors for each."""

    url: str
    token: str = field(repr=False)
    bases: Mapping[str, Path | None]
    actors: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    device: str = CPU
    limits: ProcessLimits = field(default_factory=ProcessLimits)


class ClusterActor:
    """An actor: one worker for one base. Ray restarts it elsewhere when its process or node dies."""

    def __init__(self, plan: ClusterPlan, base: str) -> None:
        self._plan, self._base = plan, base
        self._worker: Worker | None = None
        self._lines: list[str] = []

    def run(self, *, once: bool) -> RunSummary:
        """Work until `stop`; with `once`, until no job of the base is left."""
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
        """Stop after the running job."""
        if self._worker is not None:
            self._worker.stop()

    def lines(self) -> list[str]:
        """The lines since the last call."""
        lines, self._lines[:] = list(self._lines), []
        return lines

    def where(self) -> tuple[str, int]:
        """The node and the process that this actor runs in now."""
        return ray.get_runtime_context().get_node_id(), os.getpid()


class Cluster:
    """The actors of one plan. `say` gets one line for each event on any of them."""

    def __init__(self, address: str, plan: ClusterPlan, *, say: Callable[[str], None]) -> None:
        self._say = say
        self._stopping = threading.Event()
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace="adapter-registry")
        actor = ray.remote(ClusterActor).options(
            num_cpus=plan.cpus, num_gpus=plan.gpus, max_restarts=-1, max_task_retries=-1, max_concurrency=4,
            scheduling_strategy="SPREAD",
        )  # fmt: skip
        self.actors: list[Any] = [actor.remote(plan, base) for base in plan.bases for _ in range(plan.actors)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for actor in self.actors:
            ray.kill(actor)
        if self._started_ray:
            ray.shutdown()

    def stop(self) -> None:
        """Stop after the running jobs. May be called from a signal handler."""
        self._stopping.set()

    def run(self, *, once: bool = False) -> RunSummary:
        """Run until every actor has ended, after `stop` or, with `once`, when no job is left. Sum up their results."""
        running = {actor.run.remote(once=once): actor for actor in self.actors}
        total, stopped = RunSummary(), False
        while running:
            if self._stopping.is_set() and not stopped:
                stopped = True
                for actor in running.values():
                    actor.stop.remote()
            ended, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            self._forward_lines(list(running.values()))
            for reference in ended:
                del running[reference]
                summary = ray.get(reference)
                total.done += summary.done
                total.failed += summary.failed
                total.base_loads += summary.base_loads
                total.unfinished += summary.unfinished
        return total

    def _forward_lines(self, actors: list[Any]) -> None:
        for actor in actors:
            try:
                for line in ray.get(actor.lines.remote(), timeout=POLL_SECONDS):
                    self._say(line)
            except (*LOST_ACTOR_ERRORS, ray.exceptions.GetTimeoutError):  # it is being restarted, or starts
                continue
