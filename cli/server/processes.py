"""`run_processes`: several processes of one server, which share its listening socket.

Caches and limits of requests and connections are those of one process.
"""

import contextlib
import ctypes
import logging
import os
import signal
from collections.abc import Callable, Iterable

RESEND_SECONDS = 1.0
"""A process that is still starting misses a signal, so SIGTERM is sent again until all have ended."""
_FOREVER_SECONDS = 86_400.0
_PR_SET_PDEATHSIG = 1
_STOPS = (signal.SIGTERM, signal.SIGINT)
_READY = signal.SIGUSR1
_SIGNALS = {*_STOPS, signal.SIGHUP, signal.SIGCHLD, _READY}
_LOG = logging.getLogger("registry.server")


def run_processes(count: int, work: Callable[[int, Callable[[], None]], None]) -> int:
    """Fork processes that call `work(number, ready)`, and return the exit code once all have ended; 0 in a child.

    The first has the number 0 and starts alone, the others once it calls `ready`. One that was ready is started again
    when it ends; one that was not ends all. SIGTERM and SIGINT end all, SIGHUP goes to all.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    parent, running, ready, stopping, code = os.getpid(), set[int](), set[int](), False, 0
    pending = [0]
    while pending or running:
        for number in pending:
            pid = os.fork()
            if pid == 0:
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
                work(number, lambda: os.kill(parent, _READY))
                return 0
            running.add(pid)
        pending = []
        received = signal.sigtimedwait(_SIGNALS, RESEND_SECONDS if stopping else _FOREVER_SECONDS)
        if received is None:
            _send(running if stopping else (), signal.SIGTERM)
        elif received.si_signo == _READY:
            pending = [] if ready or stopping else [*range(1, count)]
            ready.add(received.si_pid)
        elif received.si_signo == signal.SIGCHLD:
            for pid, status in _ended():
                running.discard(pid)
                if pid in ready and not stopping:
                    _LOG.error("a server process ended and is started again", extra={"fields": {"pid": pid}})
                    pending.append(count)
                elif not stopping:
                    stopping, code = True, status or 1
                    _send(running, signal.SIGTERM)
        else:
            stopping = stopping or received.si_signo in _STOPS
            _send(running, signal.SIGTERM if stopping else signal.SIGHUP)
    return code


def _ended() -> list[tuple[int, int]]:
    """Process and exit code of the children that have ended."""
    ended = []
    with contextlib.suppress(ChildProcessError):
        while (child := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            ended.append((child[0], os.waitstatus_to_exitcode(child[1])))
    return ended


def _send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)
