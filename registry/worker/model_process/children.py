"""`Children`: the keeper's children. Fork (or start) them, hand them adapters, keep their deadlines, end them.

Invariants
- A child that did not answer as it should is ended with its whole process group, and never asked again.
- Of an adapter that the warm child refuses or stumbles over, the child of its own says what becomes the verdict.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from registry.worker.devices import CPU
from registry.worker.model_process.child import Alone, Loader, Message, Warm, failed
from registry.worker.sandbox import confine, program

WARM, ALONE = "warm", "alone"
"""Roles of a child that is a program of its own."""
ANSWER_LIMIT_BYTES = 4 * 2**20
Say = Callable[[Message], None]


class Stops(Protocol):
    """Where the word to stop comes from: descriptor 0, read by `read`."""

    def read(self) -> None: ...

    def told_to_stop(self, request: int) -> bool: ...


class Child:
    """One forked process and the two pipes to it."""

    def __init__(self, pid: int, to_child: int, from_child: int, *, loads: bool = False) -> None:
        """`loads`: it has a base to load first, which its deadline does not count."""
        self.pid = pid
        self._loads = loads
        self._to, self._from = to_child, from_child
        self._rest = b""
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # as the child does itself: whoever comes first

    def ask(self, request: Message, stops: Stops, say: Say) -> Message:
        """Its answer. `{"failed": …, "spoilt": True}` when it was killed or died: then it is gone."""
        seconds = float(request["deadline_seconds"])
        deadline = time.monotonic() + seconds + (confine.LOAD_SECONDS_LIMIT if self._loads else 0)
        try:
            _write(self._to, request)
            while True:
                line, why = self._line(deadline, stops, request)
                if why:
                    return self._gone(f"the child was killed: {why}")
                message = _parsed(line)
                if message is None:
                    return self._gone("")
                if "says" not in message and "loaded" not in message:
                    return message
                if "loaded" in message:
                    self._loads, deadline = False, time.monotonic() + seconds
                say(message)
        except BrokenPipeError:
            return self._gone("")

    def _line(self, deadline: float, stops: Stops, request: Message) -> tuple[bytes, str]:
        """The next line, or why the child must not go on. An empty line means that it closed its pipe."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._from, selectors.EVENT_READ)
            selector.register(0, selectors.EVENT_READ)
            while not stops.told_to_stop(request["id"]):
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
                    if len(self._rest) > ANSWER_LIMIT_BYTES:
                        return b"", f"its answer is over {ANSWER_LIMIT_BYTES} bytes"
        return b"", "the worker gave the job up"

    def _gone(self, why: str) -> Message:
        status = self.end() if why else self._wait()
        if not why and os.WIFSIGNALED(status):
            why = f"the child died of {signal.Signals(os.WTERMSIG(status)).name} without an answer"
        return {"failed": why or f"the child ended with status {status >> 8} without an answer", "spoilt": True}

    def _wait(self) -> int:
        """The status of a child that has closed its pipe by itself, and so is at its end."""
        ends = time.monotonic() + 5
        while time.monotonic() < ends:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                self._close()
                return status
            time.sleep(0.01)
        return self.end()

    def end(self) -> int:
        """Kill it and everything that it started; its status."""
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
    def __init__(self, base: Any, loader: Loader, stops: Stops, say: Say, alone: type[Alone] = Alone) -> None:
        """`alone` is what tries one adapter by itself. Only language models (`Alone`) have a warm child beside it."""
        self._base, self._loader, self._alone = base, loader, alone
        self._stops, self._say = stops, say
        self._warm: Child | None = None

    def try_adapter(self, request: Message) -> Message:
        """`{"seen": …}` from whichever child could judge, or `{"failed": message}`."""
        if request.get("alone") or self._alone is not Alone:
            return self._in_its_own(request, "")
        if self._warm is None:
            self._warm = self._fork(Warm(self._base, self._loader), request)
        self._say({"child": self._warm.pid})
        answer = self._warm.ask(request, self._stops, self._say)
        if "seen" in answer or "alone" in answer:
            return answer if "seen" in answer else self._in_its_own(request, answer["alone"])
        self._warm.end()  # whatever it was, nothing of it may reach the next adapter
        self._warm = None
        if "discard" in answer:
            return self._in_its_own(request, f"the shared process was given up: {answer['discard']}")
        return answer

    def _in_its_own(self, request: Message, why: str) -> Message:
        answer = self._ask_alone(request)
        if answer.get("memory") and self._warm is not None and not self._loader.forks:
            self._warm.end()  # two copies of the base are too many for this GPU
            self._warm = None
            answer = self._ask_alone(request)
        if why and "seen" in answer:
            answer["seen"]["measurements"]["alone_because"] = why[:600]
        return answer

    def _ask_alone(self, request: Message) -> Message:
        child = self._fork(self._alone(self._base, self._loader), request)
        self._say({"child": child.pid})
        try:
            return child.ask(request, self._stops, self._say)
        finally:
            child.end()

    def _fork(self, work: Alone, request: Message) -> Child:
        inward, to_child = os.pipe()
        from_child, outward = os.pipe()
        threads, keeper = int(request["threads"]), os.getpid()
        if not self._loader.forks:
            pid = self._start(WARM if isinstance(work, Warm) else ALONE, inward, outward, threads)
        elif (pid := os.fork()) == 0:
            be_the_child(work, threads, inward, outward, keeper, self._loader.device)  # never returns
        os.close(inward)
        os.close(outward)
        return Child(pid, to_child, from_child, loads=self._base is None)

    def _start(self, role: str, inward: int, outward: int, threads: int) -> int:
        """The program of this keeper once more, as a child (see its `main`)."""
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


def be_the_child(work: Alone, threads: int, inward: int, outward: int, keeper: int, device: str) -> None:
    """Answer requests until the pipe ends, and end without any clean-up of the keeper's state."""
    try:
        os.setpgid(0, 0)
        confine.die_with_the_parent()
        if os.getppid() != keeper:
            os._exit(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        held = confine.confine(keep=(0, 1, 2, inward, outward))
        torch.set_num_threads(threads)
        with os.fdopen(inward, "rb") as requests:
            for line in requests:
                request = json.loads(line)
                memory = int(request["memory_bytes"]) if device == CPU else 0  # a GPU's driver maps more than any limit
                seconds = _cpu_seconds(request, loads=device != CPU)
                confine.grant(seconds=seconds, memory_bytes=memory)
                before = time.process_time()
                answer = work.answer(request, lambda message: _write(outward, message))
                if "seen" in answer:
                    answer["seen"]["measurements"]["confined_by"] = list(held.layers)
                    answer["seen"]["measurements"]["cpu_seconds"] = round(time.process_time() - before, 3)
                _write(outward, answer)
    except BaseException as e:
        with contextlib.suppress(OSError):
            _write(outward, failed(e))
    finally:
        os._exit(0)


def _cpu_seconds(request: Message, *, loads: bool) -> float:
    return (float(request["deadline_seconds"]) + confine.LOAD_SECONDS_LIMIT * loads) * int(request["threads"]) + 5


def _write(pipe: int, message: Any) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(pipe, data) :]


def _parsed(line: bytes) -> Message | None:
    with contextlib.suppress(ValueError):
        message = json.loads(line)
        if isinstance(message, dict):
            return message
    return None
