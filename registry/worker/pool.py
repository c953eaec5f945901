"""The main process's side of the keepers: start one for a base, hand it adapters, count base loads, end it.

Invariants
- No torch here: a keeper may be killed at any moment and this process goes on.
- A keeper's environment is an allow-list; no token and no key of ours is in it.
- One base load serves any number of adapters; `base_loads` counts them, and every report carries the count.
- A keeper that dies, or answers nonsense, is dropped; the next adapter of its base gets a new one.

Example
    >>> with Pool() as pool:
    ...     answer = pool.try_adapter(source, folder, limits)
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

KEEPERS_LIMIT = 2
"""Bases in memory at once; the one not used for longest makes room."""
LOAD_SECONDS_LIMIT = 600.0

_PASSED_ON = frozenset(
    {"PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "TZ",
     "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"}
)  # fmt: skip
_SETTINGS = {
    "OMP_WAIT_POLICY": "passive",  # spinning threads stall every other process on a busy machine
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DEACTIVATE_ASYNC_LOAD": "1",  # no loader threads: the keeper forks
    "TOKENIZERS_PARALLELISM": "false",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONSAFEPATH": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONWARNINGS": "ignore",  # of the libraries; they are not for whoever runs a worker
}


@dataclass(frozen=True, slots=True)
class Source:
    """A base that this machine can load: its name, its folder, and the fingerprint that both agree on."""

    name: str
    folder: Path
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What one child may use. `memory_bytes` comes on top of what the keeper has mapped."""

    deadline_seconds: float = 300.0
    memory_bytes: int = 8 * 2**30
    threads: int = max(1, os.cpu_count() or 1)


class Gone(Exception):
    """The keeper died or broke the protocol: the attempt failed, the base must be loaded again."""


class Keeper:
    """One keeper process. `ready` says what it loaded and with which versions."""

    def __init__(self, source: Source, *, environment: Mapping[str, str] | None = None) -> None:
        self.source = source
        self.child = 0
        self.tried = 0
        self._rest = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "registry.worker.keeper", source.name, str(source.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean_environment(os.environ if environment is None else environment),
            start_new_session=True,  # a Ctrl-C at the terminal reaches us, and we end it in order
        )
        self.ready: dict[str, Any] = {}

    def load(self) -> Self:
        """Wait until the base is loaded. `Gone` says why it is not; the process has ended then."""
        try:
            first = self._read(time.monotonic() + LOAD_SECONDS_LIMIT)
            if "ready" not in first:
                raise Gone(str(first.get("error") or "the keeper said nothing that we know"))
        except Gone:
            self.kill()
            raise
        self.ready = first["ready"]
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def try_adapter(self, folder: Path, limits: Limits) -> dict[str, Any]:
        """`{"seen": {"findings", "measurements"}}`, or `{"failed": sentence}`. `Gone` if the keeper is lost."""
        self.tried += 1
        self._write(
            {
                "id": self.tried,
                "folder": str(folder),
                "deadline_seconds": limits.deadline_seconds,
                "memory_bytes": limits.memory_bytes,
                "threads": limits.threads,
            }
        )
        patience = time.monotonic() + limits.deadline_seconds + 30  # the keeper keeps the deadline; this is the net
        try:
            while True:
                message = self._read(patience)
                if "child" not in message:
                    return message
                self.child = int(message["child"])
        except Gone:
            self.kill()
            raise
        finally:
            self.child = 0

    def stop_child(self) -> None:
        """Give the running adapter up; its `try_adapter` then answers `failed`. May be called from any thread."""
        with contextlib.suppress(Gone):
            self._write({"stop": self.tried})

    def interrupt(self) -> None:
        """End what goes on now: the running adapter, or the loading of the base. May be called from any thread."""
        if self.ready:
            self.stop_child()
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)  # `load` sees it, and clears up

    def kill(self) -> None:
        """End the keeper and its child, now. A child dies with its keeper (or by its own group, if it is known)."""
        for pid in (self.child, self._process.pid):
            if pid > 0 and (pid != self._process.pid or self.alive):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _write(self, message: dict[str, Any]) -> None:
        pipe = self._process.stdin
        try:
            if pipe is not None:
                pipe.write(json.dumps(message).encode() + b"\n")
                pipe.flush()
        except (OSError, ValueError) as e:
            raise Gone(f"the keeper of {self.source.name} is gone: {e}") from e

    def _read(self, deadline: float) -> dict[str, Any]:
        pipe = self._process.stdout
        with selectors.DefaultSelector() as selector:
            if pipe is None or pipe.closed:
                raise Gone(f"the keeper of {self.source.name} is gone")
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise Gone(f"the keeper of {self.source.name} does not answer")
                data = os.read(pipe.fileno(), 65536)
                if not data:
                    raise Gone(f"the keeper of {self.source.name} died ({_end_of(self._process)})")
                self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        try:
            message = json.loads(line)
        except ValueError as e:
            raise Gone(f"the keeper of {self.source.name} broke the protocol") from e
        return message if isinstance(message, dict) else {}


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a keeper and its children may know: where programs lie, the language, how many threads. No secrets."""
    kept = {name: value for name, value in environment.items() if name in _PASSED_ON}
    return _SETTINGS | {name: value for name, value in kept.items() if value}


def _end_of(process: subprocess.Popen[bytes]) -> str:
    status = process.wait()
    return f"signal {-status}" if status < 0 else f"exit status {status}"


class Pool:
    """The keepers of this worker, by base, the last used one last."""

    def __init__(self, *, keepers_limit: int = KEEPERS_LIMIT) -> None:
        self.base_loads = 0
        self._limit = keepers_limit
        self._keepers: dict[str, Keeper] = {}
        self._busy: Keeper | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def warm(self) -> list[str]:
        """The bases in memory, the last used one first."""
        return [name for name, keeper in reversed(self._keepers.items()) if keeper.alive]

    def keeper(self, source: Source) -> Keeper:
        """The keeper of this base, started now if there is none. `Gone` when the base does not load."""
        keeper = self._keepers.pop(source.name, None)
        if keeper is not None and not (keeper.alive and keeper.source == source):
            keeper.kill()
            keeper = None
        while keeper is None and len(self._keepers) >= self._limit:
            self._keepers.pop(next(iter(self._keepers))).kill()
        if keeper is None:
            keeper = self._busy = Keeper(source)
            try:
                keeper.load()
            finally:
                self._busy = None
            self.base_loads += 1
        self._keepers[source.name] = keeper
        return keeper

    def try_adapter(self, source: Source, folder: Path, limits: Limits) -> dict[str, Any]:
        """One adapter on its base. Adds what the keeper knows: `base` (load time, versions, how many were tried)."""
        keeper = self._busy = self.keeper(source)
        try:
            answer = keeper.try_adapter(folder, limits)
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

    def close(self) -> None:
        while self._keepers:
            self._keepers.popitem()[1].kill()
