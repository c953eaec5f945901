"""`ModelProcess`: the main process's handle on one keeper process: start it, hand it adapters, end it.

Invariants
- No torch here: a keeper may be killed at any moment and this process goes on.
- A keeper's environment is an allow-list; no token and no key of ours is in it.
- A keeper that dies, or answers nonsense, is `Gone`: the attempt failed, and the base must be loaded again.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from registry.worker.devices import CPU
from registry.worker.model.sources import Source
from registry.worker.sandbox import confine, program
from registry.worker.sandbox.confine import LOAD_SECONDS_LIMIT
from registry.worker.sandbox.environment import environment_for


@dataclass(frozen=True, slots=True)
class Limits:
    """What one child may use. `memory_bytes` comes on top of what the keeper has mapped.

    `alone` gives every adapter a process of its own. `any_name` lets adapters with names outside the allow-list reach
    the shared process: for tests, which show that the checksum stops them there.
    """

    deadline_seconds: float = 300.0
    memory_bytes: int = 8 * 2**30
    threads: int = max(1, os.cpu_count() or 1)
    alone: bool = False
    any_name: bool = False


class Gone(Exception):
    """The keeper died or broke the protocol: the attempt failed, the base must be loaded again."""


class ModelProcess:
    """One keeper process. `ready` says what it loaded and with which versions."""

    def __init__(
        self, source: Source, *, device: str = CPU, environment: Mapping[str, str] | None = None,
        listener: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self.source = source
        self.loads = 0
        self.listener = listener
        self.child = 0
        self.tried = 0
        self._rest = b""
        self._on_a_gpu = device != CPU
        self._wrapper = confine.bubblewrap()
        self._process = subprocess.Popen(
            [
                *self._wrapper,
                *program.command(_program(source.folder), source.name, str(source.folder), device, source.dtype),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment_for(device, os.environ if environment is None else environment),
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
        self.loads = int("load_seconds" in self.ready)
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def try_adapter(
        self, folder: Path, limits: Limits, thresholds: Mapping[str, float] | None = None, *, structure: bool = False
    ) -> dict[str, Any]:
        """`{"seen": {"findings", "measurements"}}`, or `{"failed": message}`. `Gone` if the keeper is lost.

        `structure`: PEFT is asked about names and shapes too; findings of that are under `structure`.
        """
        self.tried += 1
        self._write(
            {
                "id": self.tried,
                "folder": str(folder),
                "deadline_seconds": limits.deadline_seconds,
                "memory_bytes": limits.memory_bytes,
                "threads": limits.threads,
                "alone": limits.alone,
                "any_name": limits.any_name,
                "thresholds": dict(thresholds or {}),
                "structure": structure,
            }
        )
        # The keeper keeps the deadline of each child, and there may be two; this is the net.
        patience = time.monotonic() + 2 * limits.deadline_seconds + 30
        patience += 2 * LOAD_SECONDS_LIMIT if self._on_a_gpu else 0
        try:
            while True:
                message = self._read(patience)
                if "child" in message:
                    self.child = int(message["child"])
                elif "loaded" in message:  # on a GPU a child loads the base
                    self.loads += 1
                    self.ready |= message["loaded"]
                elif "says" in message:
                    if self.listener is not None:
                        self.listener(str(message["says"])[:500])
                else:
                    return self._confined(message)
        except Gone:
            self.kill()
            raise
        finally:
            self.child = 0

    def _confined(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer, with bubblewrap among the layers that its report names, where the keeper runs in it."""
        if self._wrapper and "seen" in answer:
            layers = answer["seen"]["measurements"].setdefault("confined_by", [])
            layers.insert(0, "bubblewrap")
        return answer

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


def _program(folder: Path) -> str:
    """A pipeline of several models has no configuration of its own beside theirs."""
    return (
        "registry.worker.model_process.host"
        if (folder / "config.json").is_file()
        else "registry.worker.model_process.image_host"
    )


def _end_of(process: subprocess.Popen[bytes]) -> str:
    status = process.wait()
    return f"signal {-status}" if status < 0 else f"exit status {status}"
