"""`Pool`: the keepers of this worker, by base. One base load serves any number of adapters.

Invariants
- No torch here: a keeper may be killed at any moment and this process goes on.
- `base_loads` counts the loads, and every report carries the count.
- A keeper that dies, or answers nonsense, is dropped; the next adapter of its base gets a new one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from registry.worker.devices import CPU
from registry.worker.model.sources import Source
from registry.worker.model_process.client import Limits, ModelProcess

KEEPERS_LIMIT = 2
"""Bases in memory at once, on a CPU; the one not used for longest makes room. On a GPU it is one."""


class Pool:
    """The keepers of this worker, by base, the last used one last."""

    def __init__(self, *, keepers_limit: int = 0, device: str = CPU) -> None:
        self.device = device
        self._loads_before = 0
        self._listener: Callable[[str], None] | None = None
        self._limit = keepers_limit or (KEEPERS_LIMIT if device == CPU else 1)
        self._keepers: dict[str, ModelProcess] = {}
        self._busy: ModelProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def base_loads(self) -> int:
        """How often a base was loaded by keepers of this pool, those that ended included."""
        return self._loads_before + sum(keeper.loads for keeper in self._keepers.values())

    @contextlib.contextmanager
    def listening(self, listener: Callable[[str], None]) -> Iterator[None]:
        """Tell what the child does meanwhile, in words. The listener must not raise."""
        self._listener = listener
        try:
            yield
        finally:
            self._listener = None

    @property
    def warm(self) -> list[str]:
        """The bases in memory, the last used one first."""
        return [name for name, keeper in reversed(self._keepers.items()) if keeper.alive]

    def keeper(self, source: Source) -> ModelProcess:
        """The keeper of this base, started now if there is none. `Gone` when the base does not load."""
        keeper = self._keepers.pop(source.name, None)
        if keeper is not None and not (keeper.alive and keeper.source == source):
            self._end(keeper)
            keeper = None
        while keeper is None and len(self._keepers) >= self._limit:
            self._end(self._keepers.pop(next(iter(self._keepers))))
        if keeper is None:
            keeper = self._busy = ModelProcess(source, device=self.device)
            try:
                keeper.load()
            finally:
                self._busy = None
        self._keepers[source.name] = keeper
        return keeper

    def try_adapter(self, source: Source, folder: Path, limits: Limits, *, structure: bool = False) -> dict[str, Any]:
        """One adapter on its base. Adds what the keeper knows: `base` (load time, versions, how many were tried)."""
        keeper = self._busy = self.keeper(source)
        keeper.listener = self._listener
        try:
            answer = keeper.try_adapter(folder, limits, source.thresholds, structure=structure)
        finally:
            self._busy = None
        return answer | {"base": keeper.ready | {"adapters_tried": keeper.tried, "base_loads": self.base_loads}}

    def stop_child(self) -> None:
        """Give up the adapter that is being tried, if there is one. May be called from any thread."""
        busy = self._busy
        if busy is not None and busy.ready:
            busy.stop_child()

    def interrupt(self) -> None:
        """As `stop_child`, and a base that is being loaded is given up too. May be called from any thread."""
        busy = self._busy
        if busy is not None:
            busy.interrupt()

    def _end(self, keeper: ModelProcess) -> None:
        self._loads_before += keeper.loads
        keeper.kill()

    def close(self) -> None:
        while self._keepers:
            self._end(self._keepers.popitem()[1])
