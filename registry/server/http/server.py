"""`HttpServer`: uvicorn as it is, with the limits that its options and the kernel have.

- Each process has as many connections as three quarters of its open files; beyond that uvicorn responds with 503.
- An idle connection is closed after `IDLE_SECONDS`, one whose peer reads nothing of a response after `UNREAD_SECONDS`.
- Only `trusted_proxies` are believed about the address and the scheme of a client (`Settings.trusted_proxies`).
- A head has no limit here. Whoever lets strangers connect puts a proxy in front, which has (docs/deploy.md).
"""

import resource
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

GRACE_SECONDS = 30
"""How long requests that are under way at a stop may take."""
IDLE_SECONDS = 75
"""Longer than proxies keep an idle connection, so that they close it first: else they may send into a closed one."""
UNREAD_SECONDS = 60
BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket. `OSError` says which address is not free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; accepted sockets inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1000)
    try:
        listener.bind((host, port))
    except OSError as e:
        listener.close()
        raise OSError(e.errno, f"cannot listen on {host} port {port}: {e.strerror}") from e
    return listener


class HttpServer(uvicorn.Server):
    """Calls `on_start` once connections are accepted, and `on_stop` when it begins to stop; both on the event loop."""

    def __init__(
        self, app: Any, *, trusted_proxies: str = "", on_start: Callable[[], None] = lambda: None,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        config = uvicorn.Config(
            app, http="httptools", ws="none", log_config=None, log_level="warning", access_log=False,
            server_header=False, timeout_graceful_shutdown=GRACE_SECONDS, timeout_keep_alive=IDLE_SECONDS,
            backlog=BACKLOG, limit_concurrency=_connections_limit(),
            proxy_headers=bool(trusted_proxies.split()), forwarded_allow_ips=trusted_proxies.split(),
        )  # fmt: skip
        super().__init__(config)
        self._on_start, self._on_stop = on_start, on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept connections."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests end, for `GRACE_SECONDS`."""
        self._on_stop()
        await super().shutdown(sockets)


def _connections_limit() -> int:
    """Let the process open as many files as it may; connections get three quarters of them."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    return (2**20 if files == resource.RLIM_INFINITY else files) * 3 // 4
