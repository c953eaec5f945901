"""The process that keeps one base: it loads the base once and forks a child for every adapter that is tried on it.

    main process ──JSON lines──▶ keeper (torch, the base) ──fork──▶ child (the adapter) ──pipe──▶ keeper ──▶ main

Invariants
- The keeper itself never sees an adapter's bytes and never runs a forward, so nothing can change its base, and it
  has one thread only, so that forking is sound.
- A child has its own process group, limits on memory, CPU time, written files and cores, and dies at its deadline,
  when the keeper is told to stop, or when the keeper dies.
- The environment holds no secrets: the main process (registry.worker.pool) passes an allow-list of variables.
- Standard output carries the protocol alone; what libraries print goes to standard error.

Example
    $ python -m registry.worker.keeper tiny models/tiny
    {"ready": {"load_seconds": 0.3, "parameters": 147008, "threads": 1, "versions": {...}}}
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import selectors
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from registry import __version__
from registry.lora import config
from registry.worker import validate
from registry.worker.model import Base

ANSWER_LIMIT_BYTES = 4 * 2**20
FILE_LIMIT_BYTES = 2**20
_PR_SET_PDEATHSIG = 1

Message = dict[str, Any]


def main(arguments: list[str]) -> int:
    """`NAME FOLDER`: load, say that it is ready, serve requests until standard input ends."""
    name, folder = arguments
    _die_with_the_parent()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.set_blocking(0, False)
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    try:
        base = Base.load(Path(folder), name)
    except Exception as e:
        _say(out, {"error": f"the base {name} does not load from {folder}: {validate.first_line(e)}"})
        return 1
    _say(out, {"ready": _ready(base)})
    inbox = Inbox()
    for message in inbox:
        if "folder" in message:
            _say(out, try_adapter(base, message, inbox, out))
    return 0


def _ready(base: Base) -> Message:
    return {
        "load_seconds": round(base.load_seconds, 3),
        "parameters": base.parameters,
        "threads": len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0,
        "versions": {
            "worker": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "python": platform.python_version(),
        },
    }


def _say(out: Any, message: Message) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


class Inbox:
    """Requests from standard input, one JSON object a line; `stop` messages can be seen while a child runs."""

    def __init__(self) -> None:
        self._rest = b""
        self._waiting: list[Message] = []
        self.closed = False

    def __iter__(self) -> Iterator[Message]:
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            while True:
                while self._waiting:
                    yield self._waiting.pop(0)
                if self.closed:
                    return
                selector.select()
                self.read()

    def read(self) -> None:
        """Take in what has arrived. An end of file means that the main process is gone."""
        try:
            data = os.read(0, 65536)
        except BlockingIOError:
            return
        self.closed = self.closed or not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._waiting += [json.loads(line) for line in lines if line]

    def told_to_stop(self, request: int) -> bool:
        """Whether the child of this request is to be given up. A stop that came too late for its child is dropped."""
        stops = {message["stop"] for message in self._waiting if "stop" in message}
        self._waiting = [message for message in self._waiting if "stop" not in message]
        return request in stops or self.closed


def try_adapter(base: Base, request: Message, inbox: Inbox, out: Any) -> Message:
    """Fork a child for this adapter and wait for its answer: `{"seen": …}`, or `{"failed": sentence}`."""
    reader, writer = os.pipe()
    keeper = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_the_child(base, request, writer, keeper)  # never returns
    os.close(writer)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)  # as the child does itself: whoever comes first
    _say(out, {"child": child})
    try:
        answer, why = _wait(reader, inbox, request)
    finally:
        os.close(reader)
        _kill(child)
    _, status = os.waitpid(child, 0)
    if why:
        return {"failed": f"the child was killed: {why}"}
    return _parse(answer, status)


def _wait(reader: int, inbox: Inbox, request: Message) -> tuple[bytes, str]:
    """All that the child writes until it closes its pipe, or the reason why it must not go on."""
    answer = b""
    seconds = float(request["deadline_seconds"])
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while not inbox.told_to_stop(request["id"]):
            left = deadline - time.monotonic()
            if left <= 0:
                return b"", f"it reached its deadline of {seconds:g} seconds"
            for key, _ in selector.select(left):
                if key.fd == reader:
                    data = os.read(reader, 65536)
                    if not data:
                        return answer, ""
                    answer += data
                    if len(answer) > ANSWER_LIMIT_BYTES:
                        return b"", f"its answer is over {ANSWER_LIMIT_BYTES} bytes"
                else:
                    inbox.read()
    return b"", "the worker gave the job up"


def _kill(child: int) -> None:
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(child, signal.SIGKILL)


def _parse(answer: bytes, status: int) -> Message:
    if answer:
        with contextlib.suppress(ValueError):
            parsed = json.loads(answer)
            if isinstance(parsed, dict):
                return parsed
    if os.WIFSIGNALED(status):
        return {"failed": f"the child died of {signal.Signals(os.WTERMSIG(status)).name} without an answer"}
    return {"failed": f"the child ended with status {os.waitstatus_to_exitcode(status)} without an answer"}


def _be_the_child(base: Base, request: Message, writer: int, keeper: int) -> None:
    """Try the adapter, write the answer, and end without any clean-up of the keeper's state."""
    answer: Message
    try:
        _confine(request, keeper)
        torch.set_num_threads(int(request["threads"]))
        folder = Path(request["folder"])
        described = config.read_config((folder / config.FILE).read_bytes())
        seen = validate.examine(base, folder, described)
        findings = [finding.model_dump(mode="json") for finding in seen.findings]
        answer = {"seen": {"findings": findings, "measurements": seen.measurements}}
    except BaseException as e:
        memory = "memory ran out" if validate.out_of_memory(e) else "the check broke off"
        answer = {"failed": f"{memory}: {validate.first_line(e)}"}
    try:
        data = json.dumps(answer).encode()
        while data:
            data = data[os.write(writer, data) :]
    finally:
        os._exit(0)


def _confine(request: Message, keeper: int) -> None:
    """Own process group, death with the keeper, no standard input, and the limits of the request."""
    os.setpgid(0, 0)
    _die_with_the_parent()
    if os.getppid() != keeper:
        os._exit(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    seconds = int(float(request["deadline_seconds"]) * int(request["threads"])) + 5
    limits = {
        resource.RLIMIT_AS: _address_space_bytes() + int(request["memory_bytes"]),
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: FILE_LIMIT_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))


def _die_with_the_parent() -> None:
    """Linux only. Elsewhere the end of standard input ends a keeper, and the deadline its child."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _address_space_bytes() -> int:
    """What the keeper has mapped already: the child's memory limit comes on top of it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 8 * 2**30


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
