"""Servers as child processes of the tests: a folder, free ports, a start that is waited for, an end by process id.

- A child is ended with its block, and gets a signal when the process that started it dies.

Example
    with processes.running([program], folder, stop=signal.SIGTERM) as process:
        processes.wait_until(lambda: responses(port), process, folder)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

START_LIMIT_SECONDS = 120
STOP_LIMIT_SECONDS = 60
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class CannotStart(RuntimeError):
    """The server is not installed or did not come up; the message holds the end of its log."""


@contextlib.contextmanager
def folder(prefix: str) -> Iterator[Path]:
    """A temporary folder that other users can reach, with a path short enough for a unix socket."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp" if os.access("/tmp", os.W_OK) else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running(command: list[Any], folder: Path, *, stop: signal.Signals, **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            preexec_fn=lambda: _LIBC.prctl(_PR_SET_PDEATHSIG, stop), **how,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.send_signal(stop)
        try:
            process.wait(STOP_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], folder: Path) -> None:
    """Ask again until the server is ready: it offers no event that another process could wait for."""
    deadline = time.monotonic() + START_LIMIT_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            log = (folder / "server.log").read_text(errors="replace")
            raise CannotStart(f"{process.args!r} is not ready (exit code {process.poll()}): {log[-2000:]}")
        time.sleep(0.02)


def free_port() -> int:
    """A port below the range of outgoing connections: none takes it while its server starts, or starts again."""
    return _find_ports(1, offsets=[0])[0]


def free_port_pairs(count: int) -> list[int]:
    """As `free_port`, with port + 10000 free too: SeaweedFS' rule for its gRPC ports."""
    return _find_ports(count, offsets=[0, 10_000])


def _find_ports(count: int, offsets: list[int]) -> list[int]:
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(12_000, 22_000), 1_000):
        with contextlib.suppress(OSError), contextlib.ExitStack() as listeners:
            for offset in offsets:
                listeners.enter_context(socket.create_server(("127.0.0.1", port + offset)))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise CannotStart("no free ports below 32000")
