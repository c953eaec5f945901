"""One deadline for a whole response, whatever is being waited for: TLS, headers or the body.

A read timeout begins again at each byte, so a server that sends one now and then would hold a thread without end.
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def shut_down_after(seconds: float) -> Iterator[Callable[[socket.socket], None]]:
    """Yield a function that takes each connection of a request. After so many seconds they are shut down."""
    connections: list[socket.socket] = []
    lock, is_over = threading.Lock(), False

    def watch(connection: socket.socket) -> None:
        with lock:
            connections.append(connection.dup())  # TLS takes the original over
        if is_over:
            shut_down()

    def shut_down() -> None:
        nonlocal is_over
        with lock:
            is_over = True
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield watch
    finally:
        timer.cancel()
        with lock:
            for connection in connections:
                connection.close()


def trace(watch: Callable[[socket.socket], None]) -> dict[str, Any]:
    """The extension of an httpx request that calls `watch` with its connection."""

    def on_event(name: str, info: Mapping[str, Any]) -> None:
        if name == "connection.connect_tcp.complete":
            watch(info["return_value"].get_extra_info("socket"))

    return {"trace": on_event}
