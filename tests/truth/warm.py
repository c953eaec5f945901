"""Start the worker's programs as forks of one process that has imported their libraries: seconds less for each base.

A fork runs the same module with the same arguments, environment and pipes as the new Python that it replaces, and
answers the same. Where a program runs under bubblewrap, it starts as always.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import IO, Any
from unittest import mock

from registry.worker.sandbox import confine, program

LIBRARIES = ("torch", "transformers", "peft", "registry.worker.model_process.child", "registry.worker.model.tasks")
IF_INSTALLED = ("sklearn.cluster", "scipy.stats")
"""PEFT imports them for AdaMSS, otherwise in each child that tests one: a second for every adapter."""
MESSAGE_BYTES = 2**20


@contextlib.contextmanager
def forked_programs() -> Iterator[None]:
    """Inside the block, the worker's programs are forks."""
    with Server() as server, server.starts_programs():
        yield


class Server:
    """The process that forks. It ends with this one."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()
        self._process.wait()

    @contextlib.contextmanager
    def starts_programs(self) -> Iterator[None]:
        """Inside the block, the worker's programs are forks of it."""
        start = subprocess.Popen

        def popen(arguments: Sequence[str], **options: Any) -> Any:
            head = program.command("")[:-1]
            if list(arguments[: len(head)]) != head:
                return start(arguments, **options)
            return self.start(list(arguments[len(head) :]), **options)

        with mock.patch.object(subprocess, "Popen", popen):
            yield

    def ask(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> int:
        """The answer to a message. Only the thread of the worker asks."""
        socket.send_fds(self._socket, [json.dumps(message).encode()], descriptors)
        return int(self._socket.recv(MESSAGE_BYTES))

    def start(
        self, arguments: list[str], *, stdin: int, stdout: int, env: dict[str, str], stderr: int | None = None,
        start_new_session: bool = False,
    ) -> _Fork:  # fmt: skip
        """Run a module. As `subprocess.Popen`, with pipes for standard input and output, and for errors if asked."""
        if (stdin, stdout) != (subprocess.PIPE, subprocess.PIPE):
            raise ValueError("a program has pipes")
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        message = {"arguments": arguments, "environment": env, "session": start_new_session}
        ours_errors, theirs_errors = os.pipe() if stderr == subprocess.PIPE else (None, os.dup(2))
        pid = self.ask(message, [theirs_in, theirs_out, theirs_errors])
        for descriptor in (theirs_in, theirs_out, theirs_errors):
            os.close(descriptor)
        errors = None if ours_errors is None else os.fdopen(ours_errors, "rb")
        return _Fork(self, pid, os.fdopen(ours_in, "wb"), os.fdopen(ours_out, "rb"), errors)


class _Fork:
    """What the worker uses of `subprocess.Popen`."""

    def __init__(
        self, server: Server, pid: int, stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes] | None
    ) -> None:  # fmt: skip
        self.pid, self.stdin, self.stdout, self.stderr = pid, stdin, stdout, stderr
        self.returncode: int | None = None
        self._server = server
        self._handle = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """The exit status, if it has ended."""
        return self.returncode if self.returncode is not None else self._status(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status. `subprocess.TimeoutExpired` after so many seconds."""
        status = self.returncode if self.returncode is not None else self._status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return status

    def terminate(self) -> None:
        """Send SIGTERM."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def _status(self, seconds: float | None) -> int | None:
        waiting = select.poll()
        waiting.register(self._handle, select.POLLIN)
        if waiting.poll(None if seconds is None else seconds * 1000):
            self.returncode = self._server.ask({"ended": self.pid})
            os.close(self._handle)
        return self.returncode


# ------------------------------------------------------------------ the process that forks
def main(descriptor: int) -> None:
    """Fork at each message until the other end is closed."""
    confine.die_with_parent()
    gc.disable()
    for name in LIBRARIES:
        __import__(name)
    for name in IF_INSTALLED:
        with contextlib.suppress(ImportError):
            __import__(name)
    gc.freeze()
    gc.enable()
    with socket.socket(fileno=descriptor) as control:
        while True:
            text, descriptors, _flags, _address = socket.recv_fds(control, MESSAGE_BYTES, 3)
            if not text:
                return
            message = json.loads(text)
            if "ended" in message:
                answer = os.waitstatus_to_exitcode(os.waitpid(message["ended"], 0)[1])
            else:
                answer = os.fork()
                if answer == 0:
                    control.close()
                    _become(message, descriptors)
            for number in descriptors:
                os.close(number)
            control.send(str(answer).encode())


def _become(message: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Run the module of the message, and end."""
    status = 1
    try:
        if message["session"]:
            os.setsid()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(message["environment"])
        sys.argv = message["arguments"]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    main(int(sys.argv[1]))
