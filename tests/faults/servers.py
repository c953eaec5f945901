"""`Server`: a real `adapter serve` in a process of its own, which tests may kill at a failpoint and start again.

- The processes are forked from one that has imported everything, so that a start takes a third of a second.
- The port stays the same over all starts: a client that retries finds the new process where the old one was.
- Processes end with the tests that started them, also when those are killed.

Example
    server = Server({"REGISTRY_DATA": str(tmp_path)})
    with server.running(failpoints="push.hashed=kill"), server.reviving():
        push(...)
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from cli.main import main
from tests.processes import free_port

START_LIMIT_SECONDS = 120
_PR_SET_PDEATHSIG = 1
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["tests.faults.servers", "tests.faults.races", "cli.server.serve", "boto3", "psycopg", "pytest", "pysqlite3.dbapi2"]
)
"""`races` is what the main module of `make soak` imports, and each process imports that module again."""


class Server:
    """One registry; `environment` says where its data are. `log`: the file for what its processes log."""

    @staticmethod
    def serve(port: int, environment: Mapping[str, str], log: Path | None, ready: Pipe) -> None:
        """Run the server in the new process."""
        serve(port, environment, log, ready)

    def __init__(self, environment: Mapping[str, str], log: Path | None = None) -> None:
        self.environment = dict(environment)
        self.log = log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.token = ""
        self.deaths = 0
        self.restart_seconds = 0.0
        """The longest time from a death until the next process was ready."""
        self._process: BaseProcess | None = None
        self._up = threading.Event()

    # ------------------------------------------------------------ starting and ending
    def start(self, *, failpoints: str = "") -> None:
        ours, theirs = _FORKS.Pipe(duplex=False)
        environment = self.environment | {"REGISTRY_FAILPOINTS": failpoints}
        self._process = _FORKS.Process(target=self.serve, args=(self.port, environment, self.log, theirs), daemon=True)
        self._process.start()
        theirs.close()
        if not ours.poll(START_LIMIT_SECONDS):
            raise RuntimeError("the server did not start")
        output = os.read(ours.fileno(), 10_000)
        ours.close()
        if not output:
            self._process.join()
            raise RuntimeError(f"the server ended while it started ({self._process.exitcode})")
        self.token = json.loads(output)["token"] or self.token
        self._up.set()

    def pause(self, seconds: float) -> None:
        """As long as a client pauses, and longer while a new process starts: a busy machine may take a minute."""
        time.sleep(seconds)
        self._up.wait(START_LIMIT_SECONDS)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    @property
    def pid(self) -> int:
        process = self._process
        if process is None or process.pid is None:
            raise RuntimeError("no server is running")
        return process.pid

    @contextlib.contextmanager
    def running(self, *, failpoints: str = "") -> Iterator[Server]:
        self.start(failpoints=failpoints)
        try:
            yield self
        finally:
            self.kill()

    @contextlib.contextmanager
    def reviving(self) -> Iterator[None]:
        """Start a new process, with no failpoint armed, whenever the one that runs dies in this block."""
        ended, end = _FORKS.Pipe(duplex=False)
        watcher = threading.Thread(target=self._revive, args=(ended,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            end.close()
            watcher.join()
            ended.close()

    def _revive(self, ended: Pipe) -> None:
        while True:
            process = self._process
            if process is None or ended in wait([process.sentinel, ended]):
                return
            self._up.clear()
            process.join()
            self.deaths += 1
            died_at = time.monotonic()
            self.start()
            self.restart_seconds = max(self.restart_seconds, time.monotonic() - died_at)


def serve(port: int, environment: Mapping[str, str], log: Path | None, ready: Pipe) -> None:
    """The command itself, in the new process; what it says when it is ready goes into the pipe."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.update(environment)
    os.dup2(ready.fileno(), 1)
    if log is not None:
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), 2)
    ready.close()
    main(["serve", "--port", str(port), "--json"], standalone_mode=False)
