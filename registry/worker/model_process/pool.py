"""`Pool`: the model processes of this worker, by base. One base load serves any number of adapters. No torch here.

A model process that dies or breaks the protocol is dropped; the next adapter of its base gets a new one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from registry.worker.devices import CPU
from registry.worker.model.sources import BaseSource
from registry.worker.model_process.client import ModelProcess, ProcessLimits
from registry.worker.sandbox.program import Progress, ignore_progress

BASES_LIMIT = 2
"""Bases in memory at once on a CPU; the least recently used one is evicted. On a GPU the limit is one."""


class Pool:
    """The model processes of this worker by base, most recently used last."""

    def __init__(self, *, device: str = CPU) -> None:
        self.device = device
        self._loads_before = 0
        self._limit = BASES_LIMIT if device == CPU else 1
        self._processes: dict[str, ModelProcess] = {}
        self._busy: ModelProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def base_loads(self) -> int:
        """How often model processes of this pool loaded a base, including those that have ended."""
        return self._loads_before + sum(process.loads for process in self._processes.values())

    @property
    def warm(self) -> list[str]:
        """The bases in memory, most recently used first."""
        return [name for name, process in reversed(self._processes.items()) if process.alive]

    def process(self, source: BaseSource) -> ModelProcess:
        """The model process of this base, started if there is none. `Gone` if the base does not load."""
        process = self._processes.pop(source.name, None)
        if process is not None and not (process.alive and process.source == source):
            self._end(process)
            process = None
        while process is None and len(self._processes) >= self._limit:
            self._end(self._processes.pop(next(iter(self._processes))))
        if process is None:
            process = self._busy = ModelProcess(source, device=self.device)
            try:
                process.load()
            finally:
                self._busy = None
        self._processes[source.name] = process
        return process

    def try_adapter(
        self, source: BaseSource, folder: Path, limits: ProcessLimits, *, progress: Progress = ignore_progress
    ) -> dict[str, Any]:
        """Test one adapter on its base. Adds `base`: load time, versions, adapters tested. `progress` never raises."""
        process = self._busy = self.process(source)
        try:
            answer = process.try_adapter(folder, limits, source.thresholds, progress=progress)
        finally:
            self._busy = None
        return answer | {"base": process.ready | {"adapters_tried": process.tried, "base_loads": self.base_loads}}

    def stop_child(self) -> None:
        """Stop the running test, if any. May be called from any thread."""
        busy = self._busy
        if busy is not None and busy.ready:
            busy.stop_child()

    def interrupt(self) -> None:
        """As `stop_child`, and stop loading a base. May be called from any thread."""
        busy = self._busy
        if busy is not None:
            busy.interrupt()

    def _end(self, process: ModelProcess) -> None:
        self._loads_before += process.loads
        process.kill()

    def close(self) -> None:
        """End all model processes."""
        while self._processes:
            self._end(self._processes.popitem()[1])
