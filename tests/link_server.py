"""`running`: an application behind the server of `adapter serve`, in a thread, for tests over sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from registry.server.http.server import HttpServer, listen


@dataclass
class RunningServer:
    port: int
    server: HttpServer
    thread: threading.Thread

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@contextlib.contextmanager
def running(app: Any, *, send_buffer_bytes: int = 2**18) -> Iterator[RunningServer]:
    started = threading.Event()
    listener = listen("127.0.0.1", 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    server = HttpServer(app, on_start=started.set)
    thread = threading.Thread(target=server.run, args=([listener],))
    running = RunningServer(listener.getsockname()[1], server, thread)
    thread.start()
    try:
        assert started.wait(60)
        yield running
    finally:
        running.stop()


def head_of(method: str, target: str, size_bytes: int | None = None, *more: str) -> bytes:
    """The head of a request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: x", *more]
    if size_bytes is not None:
        lines.append(f"Content-Length: {size_bytes}")
    return "\r\n".join([*lines, "", ""]).encode()


def rest_of(client: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(65536):
            received += data
    return received
