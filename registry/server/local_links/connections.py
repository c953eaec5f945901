"""Limits of connections: `ConnectionLimits` counts them, `BoundedProtocol` is uvicorn's HTTP protocol with limits.

A request head has a limit of bytes and of seconds, and a response that no one reads has a limit of seconds.
"""

import asyncio
import resource
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from registry.server.access.rate_limits import network_of
from registry.server.local_links.request import LINK_BEGINNINGS

HEAD_LIMIT_BYTES = 64 * 2**10
"""Limit for the request line and the headers of one request together."""
HEAD_SECONDS = 20.0
"""A head must be complete so long after the connection was made, or after the response before it."""
PIPELINED_LIMIT = 16
"""Requests of a connection that may wait for the response before them. Each takes 2 KiB, and 18 bytes to send."""
UNREAD_SECONDS = 60.0
"""A response of which the client reads nothing for so long is aborted."""


class ConnectionLimits:
    """Counts the open connections by address; IPv6 addresses count by their network of 64 bits."""

    def __init__(self, per_address: int, total: int) -> None:
        self._per_address, self._total = per_address, total
        self._open: Counter[str] = Counter()

    @classmethod
    def from_open_files(cls, per_address: int = 0) -> Self:
        """Let the process open as many files as it may. Connections get three quarters, an address one quarter."""
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        files = 2**20 if files == resource.RLIM_INFINITY else files
        return cls(per_address or files // 4, files * 3 // 4)

    def add(self, address: str) -> bool:
        """Count a connection; False if it is one too many."""
        network = network_of(address)
        if self._open[network] >= self._per_address or self._open.total() >= self._total:
            return False
        self._open[network] += 1
        return True

    def remove(self, address: str) -> None:
        """Count a closed connection."""
        network = network_of(address)
        self._open[network] -= 1
        if not self._open[network]:
            del self._open[network]


class BoundedProtocol(HttpToolsProtocol):
    """Closes connections that are over a limit. `on_end` is called once when the connection has ended.

    It begins with the bytes `received`. When a later request begins with a link, this protocol ends, and `on_link` gets
    the socket and the bytes of that request.
    """

    def __init__(
        self, *arguments: Any, received: bytes = b"", on_link: Callable[[socket.socket, bytes], None] | None = None,
        on_end: Callable[[], None] = lambda: None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(*arguments, **options)
        self._received = received
        self._on_link, self._on_end = on_link, on_end
        self._in_message = False
        self._head_bytes = 0
        self._head_status = b""
        self._head_deadline: asyncio.TimerHandle | None = None
        self._read_deadline: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None

    # ---------------------------------------------------------------- connection
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit of the first head."""
        super().connection_made(transport)
        self._expect_head()
        if self._received:
            super().data_received(self._received)

    def data_received(self, data: bytes) -> None:
        """Parse data, or let a thread handle a link."""
        if self._on_link is not None and data.startswith(LINK_BEGINNINGS) and self._is_idle:
            sock = self.transport.get_extra_info("socket").dup()
            sock.setblocking(False)
            on_link, self._on_end = self._on_link, lambda: None
            self.transport.close()
            on_link(sock, data)
        else:
            super().data_received(data)

    @property
    def _is_idle(self) -> bool:
        """Whether no request is under way, and nothing of a response is still to be sent."""
        is_idle = self.cycle is None or self.cycle.response_complete
        return is_idle and not (self._in_message or self.pipeline or self.transport.get_write_buffer_size())

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all time limits and call `on_end`."""
        _cancel(self._head_deadline)
        _cancel(self._read_deadline)
        self._end_responses()
        self._on_end()
        super().connection_lost(exc)

    # ---------------------------------------------------------------- request head
    def on_message_begin(self) -> None:
        """Count the bytes of a new head."""
        self._in_message = True
        self._head_bytes = 0
        if len(self.pipeline) >= PIPELINED_LIMIT:
            raise httptools.HttpParserError("too many requests wait for a response")
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the request line."""
        self._count_head(len(url), b"414 URI Too Long")
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        self._count_head(len(name) + len(value), b"431 Request Header Fields Too Large")
        super().on_header(name, value)

    def _count_head(self, size_bytes: int, status: bytes) -> None:
        """httptools has no limit for heads."""
        self._head_bytes += size_bytes
        if self._head_bytes > HEAD_LIMIT_BYTES:
            self._head_status = status
            raise httptools.HttpParserError("the head of the request is too large")

    def on_headers_complete(self) -> None:
        """Stop the time limit of the head."""
        _cancel(self._head_deadline)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that the next byte begins another request."""
        self._in_message = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Respond with the status of the limit that was exceeded, else 400; nothing while a response is under way."""
        cycle = self._running
        is_open = cycle is not None and not cycle.response_complete
        is_in_body = is_open and cycle is self.cycle and self.cycle.more_body and not self.cycle.response_started
        if is_open:
            self._end_responses()
        if is_open and not is_in_body:  # a response now would be read as the one to an earlier request
            self.transport.close()
        elif self._head_status:
            self._refuse(self._head_status)
        else:
            super().send_400_response(msg)

    def _expect_head(self) -> None:
        self._head_bytes = 0
        _cancel(self._head_deadline)
        self._head_deadline = self.loop.call_later(HEAD_SECONDS, self._end_head)

    def _end_head(self) -> None:
        if self._head_bytes:
            self._refuse(b"408 Request Timeout")
        self.transport.close()

    def _refuse(self, status: bytes) -> None:
        self.transport.write(refusal(status))
        self.transport.close()

    # ---------------------------------------------------------------- response
    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _end_responses(self) -> None:
        """Let the response that is under way write nothing more, and start none of those that wait.

        uvicorn does so for the newest request only. Another one would fail on the closed transport, with a traceback.
        """
        self.pipeline.clear()
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()

    def on_response_complete(self) -> None:
        """Start the time limit of the next head."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._expect_head()

    def pause_writing(self) -> None:
        """Start the time limit of a client that does not read."""
        super().pause_writing()
        self._read_deadline = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the time limit of a client that reads again."""
        _cancel(self._read_deadline)
        super().resume_writing()


def refusal(status: bytes) -> bytes:
    """Return the response to a request whose head was not read as a whole."""
    return b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def _cancel(deadline: asyncio.TimerHandle | None) -> None:
    if deadline is not None:
        deadline.cancel()
