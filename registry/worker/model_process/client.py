"""`ModelProcess`: a model process: start it, send it adapters, end it. `Pool`: those of this worker. No torch here."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from registry.evaluation.reports import Layer
from registry.versions.files import BASE_CONFIG
from registry.worker.devices import CPU
from registry.worker.model.sources import BaseSource
from registry.worker.sandbox import confine, namespaces, program
from registry.worker.sandbox.confine import LOAD_SECONDS_LIMIT
from registry.worker.sandbox.program import Progress, ignore_progress


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """Limits of one child. `memory_bytes` is on top of what the model process has mapped.

    `answer_tokens`: how many tokens base and adapter generate after each short probe.
    `isolate` runs every adapter in a process of its own. `any_name` lets adapters with names that neither rules nor
    PEFT expect reach the shared process: for tests of the checksum that stops them there.
    """

    deadline_seconds: float = 300.0
    memory_bytes: int = 8 * 2**30
    threads: int = max(1, os.cpu_count() or 1)
    answer_tokens: int = 0
    isolate: bool = False
    any_name: bool = False


class ProcessExited(Exception):
    """The model process died or broke the protocol: the attempt failed, the base must be loaded again."""


class NotLoaded(ProcessExited):
    """transformers does not load the base, and not because memory ran out or a device failed."""


class ModelProcess:
    """One model process. `ready`: what it loaded and the versions of its libraries."""

    def __init__(self, source: BaseSource, *, device: str = CPU, environment: Mapping[str, str] | None = None) -> None:
        self.source = source
        self.loads = 0
        self.child = 0
        self.tried = 0
        self._rest = b""
        self._on_a_gpu = device != CPU
        variables = os.environ if environment is None else environment
        process_environment = confine.environment_for(device, variables)
        program_path = namespaces.bubblewrap()
        self._wrapper: tuple[str, ...] = ()
        if program_path:
            visible = namespaces.visible_folders(source.folder)
            self._wrapper = namespaces.bubblewrap_command(program_path, confine.secret_places(variables), visible)
            process_environment[confine.HIDDEN_PLACES] = ""  # bubblewrap hides them from the children, too
        # A pipeline of several models has no config.json at its top level.
        host = "host" if (source.folder / BASE_CONFIG).is_file() else "image_host"
        module = f"registry.worker.model_process.{host}"
        command = program.command(module, source.name, str(source.folder), device, source.dtype)
        self._process = subprocess.Popen(
            [*self._wrapper, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=process_environment,
            start_new_session=True,  # Ctrl-C reaches the worker, which ends the process in order
        )  # fmt: skip
        self.ready: dict[str, Any] = {}

    def load(self) -> Self:
        """Wait until the base is loaded. `ProcessExited` with the reason if it is not; then it has ended."""
        try:
            first = self._read(time.monotonic() + LOAD_SECONDS_LIMIT)
            if "ready" not in first:
                error = str(first.get("error") or "the model process sent an unknown message")
                raise NotLoaded(error) if first.get("refused") else ProcessExited(error)
        except ProcessExited:
            self.kill()
            raise
        self.ready = first["ready"]
        self.loads = int("load_seconds" in self.ready)
        return self

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def try_adapter(
        self, folder: Path, limits: ProcessLimits, thresholds: Mapping[str, float] | None = None, *,
        progress: Progress = ignore_progress,
    ) -> dict[str, Any]:  # fmt: skip
        """Test one adapter: `{"result": {"findings", "structure", "measurements", …}}`, or `{"failed": reason}`.

        Raises `ProcessExited`.
        """
        self.tried += 1
        request = {"id": self.tried, "folder": str(folder)}
        self._write({**request, "thresholds": dict(thresholds or {}), **asdict(limits)})
        # The model process enforces the deadline of each child, and there may be two; this is the fallback.
        deadline = time.monotonic() + 2 * limits.deadline_seconds + 30
        deadline += 2 * LOAD_SECONDS_LIMIT if self._on_a_gpu else 0
        try:
            while True:
                message = self._read(deadline)
                if "child" in message:
                    self.child = 0 if self._wrapper else int(message["child"])  # bubblewrap's ends with its process
                elif "loaded" in message:  # on a GPU a child loads the base
                    self.loads += 1
                    self.ready |= message["loaded"]
                elif "progress" in message:
                    progress(str(message["progress"])[:500])
                else:
                    if self._wrapper and "result" in message:
                        message["result"]["execution"].setdefault("confined_by", []).insert(0, Layer.BUBBLEWRAP)
                    return message
        except ProcessExited:
            self.kill()
            raise
        finally:
            self.child = 0

    def stop_child(self) -> None:
        """Stop the running test; its `try_adapter` then returns `failed`. May be called from any thread."""
        with contextlib.suppress(ProcessExited):
            self._write({"stop": self.tried})

    def interrupt(self) -> None:
        """Stop the running test or the loading of the base. May be called from any thread."""
        if self.ready:
            self.stop_child()
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)  # `load` then cleans up

    def kill(self) -> None:
        """Kill the process and its child. A child dies with its parent, or with its own process group."""
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
            raise ProcessExited(f"the model process of {self.source.name} is gone: {e}") from e

    def _read(self, deadline: float) -> dict[str, Any]:
        pipe = self._process.stdout
        with selectors.DefaultSelector() as selector:
            if pipe is None or pipe.closed:
                raise ProcessExited(f"the model process of {self.source.name} is gone")
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise ProcessExited(f"the model process of {self.source.name} does not respond")
                data = os.read(pipe.fileno(), 65536)
                if not data:
                    status = self._process.wait()
                    end = f"signal {-status}" if status < 0 else f"exit status {status}"
                    raise ProcessExited(f"the model process of {self.source.name} died ({end})")
                self._rest += data
                if len(self._rest) > program.LINE_LIMIT_BYTES:
                    raise ProcessExited(f"the model process of {self.source.name} sent too long a line")
        line, self._rest = self._rest.split(b"\n", 1)
        try:
            message = json.loads(line)
        except ValueError as e:
            raise ProcessExited(f"the model process of {self.source.name} broke the protocol") from e
        return message if isinstance(message, dict) else {}


BASES_LIMIT = 2
"""Bases in memory at once on a CPU; the least recently used one is evicted. On a GPU the limit is one."""


class Pool:
    """The model processes of this worker by base, most recently used last.

    One that dies or breaks the protocol is dropped; the next adapter of its base gets a new one.
    """

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
        """The model process of this base, started if there is none. `ProcessExited` if the base does not load."""
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
            response = process.try_adapter(folder, limits, source.thresholds, progress=progress)
        finally:
            self._busy = None
        return response | {"base": process.ready | {"adapters_tried": process.tried, "base_loads": self.base_loads}}

    def stop_child(self) -> None:
        """Stop the running test, if any. May be called from any thread."""
        busy = self._busy
        if busy is not None and busy.ready:
            busy.stop_child()

    def interrupt(self) -> None:
        """Stop the child, and stop loading a base. May be called from any thread."""
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
