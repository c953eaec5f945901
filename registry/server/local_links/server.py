"""`LinkServer`: uvicorn's server, whose connections a `LinkListener` accepts."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from registry.server.http.request_log import RequestLog
from registry.server.local_links.backend import LinkBackend
from registry.server.local_links.connections import BoundedProtocol, ConnectionLimits
from registry.server.local_links.listener import LinkListener
from registry.server.storage.signed_links import LinkSigner

GRACE_SECONDS = 30
"""How long requests and transfers that are under way at a stop may take."""
BACKLOG = 2048


class LinkServer(uvicorn.Server):
    """Serves an ASGI application at `listener`, a bound socket, and handles the links of `signer` in threads.

    `on_start` is called once connections are accepted, `on_stop` when the server begins to stop; both on the event
    loop.
    """

    def __init__(
        self, application: Any, listener: socket.socket, signer: LinkSigner,
        context: LinkBackend, *, limits: ConnectionLimits, requests: RequestLog,
        on_start: Callable[[], None] = lambda: None, on_stop: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        config = uvicorn.Config(
            application, http=BoundedProtocol, ws="none", log_config=None, log_level="warning", access_log=False,
            server_header=False, timeout_graceful_shutdown=GRACE_SECONDS,
        )  # fmt: skip
        super().__init__(config)
        self._listener, self._signer, self._context = listener, signer, context
        self._limits, self._requests = limits, requests
        self._on_start, self._on_stop = on_start, on_stop
        self._links: LinkListener | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept connections."""
        await super().startup(sockets or [])
        if not self.started:
            return
        self._links = LinkListener(
            self._listener, self._signer, self._context,
            make_protocol=self._make_protocol, limits=self._limits, requests=self._requests,
        )  # fmt: skip
        self._links.start(BACKLOG)
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests and transfers end, for `GRACE_SECONDS`."""
        self._on_stop()
        stops = [super().shutdown(sockets)]
        if self._links is not None:
            stops.append(self._links.stop(GRACE_SECONDS))
        await asyncio.gather(*stops)

    def _make_protocol(
        self, received: bytes, on_link: Callable[[socket.socket, bytes], None], on_end: Callable[[], None]
    ) -> BoundedProtocol:
        """Make the application's protocol for one connection, as uvicorn does."""
        return BoundedProtocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state, received=received,
            on_link=on_link, on_end=on_end,
        )  # fmt: skip
