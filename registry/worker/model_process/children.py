"""`Children`: the children of a model process. Fork or start them, send them requests, enforce deadlines, end them.

A child that does not respond correctly is killed with its process group. If the shared process rejects an adapter or
crashes on it, the isolated run decides the verdict.
"""

import contextlib
import json
import os
import resource
import selectors
import signal
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import torch

from registry.worker.devices import CPU
from registry.worker.model_process.child import IsolatedRun, Loader, Message, Send, SharedRun, failed
from registry.worker.sandbox import confine, program
from registry.worker.smoke.result import SmokeResult

SHARED, ISOLATED = "shared", "isolated"
"""Roles of a child that is a process started on its own."""
RESPONSE_LIMIT_BYTES = 4 * 2**20
STOPPED = "the worker stopped the job"
BUSY_SHARE, BUSY_SECONDS = 0.1, 1.0
"""CPU time that makes reaching the deadline the adapter's fault. A child with less only waited."""


class StopSource(Protocol):
    """Requests to stop on file descriptor 0."""

    def read(self) -> None:
        """Read which requests are to stop."""

    def stop_requested(self, request: int) -> bool:
        """Whether this request is to stop."""


class Child:
    """One child process and the two pipes to it."""

    def __init__(self, pid: int, to_child: int, from_child: int, *, loads: bool = False) -> None:
        """`loads`: it loads a base first, which does not count towards its deadline."""
        self.pid = pid
        self._loads = loads
        self._to, self._from = to_child, from_child
        self._rest = b""
        self._stage, self._cpu_before = "", 0.0
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # the child does the same; the first one wins

    def ask(self, request: Message, stops: StopSource, send: Send) -> Message:
        """Send the request and return the response; `{"failed": reason}` if the child was killed or died.

        If the adapter exhausted the child's time, that is a finding.
        """
        seconds = float(request["deadline_seconds"])
        self._stage, self._cpu_before = "", _cpu_seconds_of(self.pid)
        deadline = time.monotonic() + seconds + (confine.LOAD_SECONDS_LIMIT if self._loads else 0)
        try:
            _write(self._to, request)
            while True:
                line, reason = self._line(deadline, stops, request)
                if reason is STOPPED:
                    return self._gone(f"the child was killed: {reason}") | {"stopped": True}
                if reason:
                    worked = _cpu_seconds_of(self.pid) - self._cpu_before
                    reason = f"the child was killed: {reason}"
                    return self._gone(reason, exhausted=worked > max(BUSY_SHARE * seconds, BUSY_SECONDS))
                message = _parse(line)
                if message is None:
                    return self._gone("")
                if "progress" not in message and "loaded" not in message:
                    return message
                self._stage = str(message.get("progress", self._stage))[:200]
                if "loaded" in message:
                    self._loads, deadline = False, time.monotonic() + seconds
                    self._cpu_before = _cpu_seconds_of(self.pid)
                send(message)
        except BrokenPipeError:
            return self._gone("")

    def _line(self, deadline: float, stops: StopSource, request: Message) -> tuple[bytes, str]:
        """The next line, or the reason to kill the child. An empty line means that it closed its pipe."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._from, selectors.EVENT_READ)
            selector.register(0, selectors.EVENT_READ)
            while not stops.stop_requested(request["id"]):
                if b"\n" in self._rest:
                    line, self._rest = self._rest.split(b"\n", 1)
                    return line, ""
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return b"", f"it reached its deadline of {float(request['deadline_seconds']):g} seconds"
                for key, _ in selector.select(remaining):
                    if key.fd == 0:
                        stops.read()
                        continue
                    data = os.read(self._from, 65536)
                    if not data:
                        return b"", ""
                    self._rest += data
                    if len(self._rest) > RESPONSE_LIMIT_BYTES:
                        return b"", f"its response is over {RESPONSE_LIMIT_BYTES} bytes"
        return b"", STOPPED

    def _gone(self, reason: str, *, exhausted: bool = False) -> Message:
        """Without a reason, the child died: of its limit of CPU time, or by itself."""
        status = self.end()
        if exhausted or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
            return limit_exceeded(reason or "its limit of CPU time ended the child", self._stage)
        if not reason and os.WIFSIGNALED(status):
            reason = f"the child died of {signal.Signals(os.WTERMSIG(status)).name} without a response"
        return {"failed": reason or f"the child ended with status {status >> 8} without a response"}

    def end(self) -> int:
        """Kill the child and every process that it started; its status, which is its own if it had ended."""
        if not self.pid:
            return 0
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        self._close()
        return status

    def _close(self) -> None:
        for number in (self._to, self._from):
            with contextlib.suppress(OSError):
                os.close(number)


class Children:
    """At most one shared child, and one isolated child at a time."""

    def __init__(
        self, base: Any, loader: Loader, stops: StopSource, send: Send, isolated: type[IsolatedRun] = IsolatedRun
    ) -> None:
        """`isolated` tests one adapter by itself. Only language models (`IsolatedRun`) also have a shared child."""
        self._base, self._loader, self._isolated = base, loader, isolated
        self._stops, self._send = stops, send
        self._shared: Child | None = None

    def try_adapter(self, request: Message) -> Message:
        """Test one adapter: `{"result": …}`, or `{"failed": reason}`."""
        if request.get("isolate") or self._isolated is not IsolatedRun:
            return self._run_isolated(request, "")
        if self._shared is None:
            self._shared = self._fork(SharedRun(self._base, self._loader), request)
        self._send({"child": self._shared.pid})
        response = self._shared.ask(request, self._stops, self._send)
        if "result" in response and self._shared.pid:
            return response
        if "isolate" in response:
            return self._run_isolated(request, response["isolate"])
        self._shared.end()  # nothing of this run may affect the next adapter
        self._shared = None
        if "discard" in response or response.get("memory"):
            reason = response.get("discard") or response["failed"]
            return self._run_isolated(request, f"the shared process was discarded: {reason}")
        return response

    def _run_isolated(self, request: Message, reason: str) -> Message:
        response = self._ask_isolated(request)
        if response.get("memory") and self._shared is not None and not self._loader.forks:
            self._shared.end()  # two copies of the base do not fit on this GPU
            self._shared = None
            response = self._ask_isolated(request)
        if response.get("memory") and self._loader.device == CPU:
            limit = f"its limit is {int(request['memory_bytes'])} bytes on top of the base"
            response = limit_exceeded(f"{response['failed']}; {limit}", "memory")
        if reason and "result" in response:
            response["result"]["execution"]["isolated_because"] = reason[:600]
        return response

    def _ask_isolated(self, request: Message) -> Message:
        child = self._fork(self._isolated(self._base, self._loader), request)
        self._send({"child": child.pid})
        try:
            return child.ask(request, self._stops, self._send)
        finally:
            child.end()

    def _fork(self, work: IsolatedRun, request: Message) -> Child:
        inward, to_child = os.pipe()
        from_child, outward = os.pipe()
        threads, parent = int(request["threads"]), os.getpid()
        if not self._loader.forks:
            pid = self._start(SHARED if isinstance(work, SharedRun) else ISOLATED, inward, outward, threads)
        elif (pid := os.fork()) == 0:
            run_child(work, threads, inward, outward, parent, self._loader.device)  # never returns
        os.close(inward)
        os.close(outward)
        return Child(pid, to_child, from_child, loads=self._base is None)

    def _start(self, role: str, inward: int, outward: int, threads: int) -> int:
        """Start this program again as a child (see `host.main`)."""
        for pipe in (inward, outward):
            os.set_inheritable(pipe, True)
        loader = self._loader
        running = sys.modules["__main__"].__spec__
        name = running.name if running is not None else "registry.worker.model_process.host"
        words = [loader.name, str(loader.folder), loader.device, loader.dtype, role, inward, outward, threads]
        return os.posix_spawn(
            sys.executable, program.command(name, *map(str, words), str(os.getpid())), confine.gpu_environment(),
            setpgroup=0,
        )  # fmt: skip


def run_child(work: IsolatedRun, threads: int, inward: int, outward: int, parent: int, device: str) -> None:
    """Handle requests until the pipe ends; never returns, and never cleans up the parent's state."""
    try:
        os.setpgid(0, 0)
        confine.die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        layers = confine.confine(keep=(0, 1, 2, inward, outward), visible=work.visible_folders)
        torch.set_num_threads(threads)
        mapped_bytes = confine.address_space_bytes()
        with os.fdopen(inward, "rb") as requests:
            for line in requests:
                request = json.loads(line)
                memory = int(request["memory_bytes"]) if device == CPU else 0  # a GPU's driver maps more than any limit
                seconds = _cpu_seconds(request, loads=device != CPU)
                confine.grant(seconds=seconds, memory_bytes=memory, mapped_bytes=mapped_bytes)
                before = time.process_time()
                response = work.respond(request, lambda message: _write(outward, message))
                if "result" in response:
                    response["result"]["execution"]["confined_by"] = layers
                    response["result"]["measurements"]["cpu_seconds"] = round(time.process_time() - before, 3)
                    response["result"]["measurements"] |= _peak_memory()
                _write(outward, response)
    except BaseException as e:
        with contextlib.suppress(OSError):
            _write(outward, failed(e))
    finally:
        os._exit(0)


def limit_exceeded(reason: str, stage: str) -> Message:
    """The response for an adapter that needs more time or memory than a test may use."""
    result = SmokeResult()
    result.note("unknown", "smoke.limit_exceeded", stage or "start", f"the test needs more than its limits: {reason}")
    return {"result": result.to_message()}


def _cpu_seconds_of(pid: int) -> float:
    """The CPU time that this process has used; 0 if the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _peak_memory() -> dict[str, int]:
    peak = {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if torch.cuda.is_initialized():
        gpus = range(torch.cuda.device_count())
        peak["peak_gpu_memory_bytes"] = sum(torch.cuda.max_memory_allocated(number) for number in gpus)
    return peak


def _cpu_seconds(request: Message, *, loads: bool) -> float:
    return (float(request["deadline_seconds"]) + confine.LOAD_SECONDS_LIMIT * loads) * int(request["threads"]) + 5


def _write(pipe: int, message: Any) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(pipe, data) :]


def _parse(line: bytes) -> Message | None:
    with contextlib.suppress(ValueError):
        message = json.loads(line)
        if isinstance(message, dict):
            return message
    return None
