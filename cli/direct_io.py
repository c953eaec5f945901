"""`DirectProtocol`: uvicorn's HTTP protocol, which also offers each request its socket (`server/http/direct_io.py`).

It uses internals of uvicorn (the parser, the request's `body` and `more_body`, the response's
`expected_content_length`); tests/cli/test_direct_io.py runs each against the installed version.

- A thread uses the socket only while the transport neither reads nor has anything left to write, and only while bytes
  flow: a slow peer goes back to the event loop. The socket blocks then, for `IDLE_SECONDS`.
- Every byte of a body is read once, by the thread or by the parser, which is then moved to where the thread ended.
- An error in a thread ends the connection after the response.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import httptools

from registry.server.http.direct_io import EXTENSION, IDLE_SECONDS, SLOTS

from .connections import BoundedProtocol

BUFFER_BYTES = 2**20
FLOW_BYTES = 2**18
"""A peer that moves less than this in `IDLE_SECONDS` goes back to the event loop."""
TURNS = 20
"""Iterations of the event loop in which the head of a response is normally sent; a slow peer takes longer."""
STEP_BYTES = 8 * 2**20
"""The most that one call sends. The flow is checked between calls."""
_IDLE = struct.pack("ll", int(IDLE_SECONDS), int(IDLE_SECONDS % 1 * 1e6))
_ZEROS = bytes(2**16)
_SLOTS = threading.BoundedSemaphore(SLOTS)


class DirectProtocol(BoundedProtocol):
    """Offers its socket to each request over plain HTTP."""

    _skipping = False
    """True while the parser is fed bytes that a thread has read already."""

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self.scheme == "http" and self.cycle is not None and not self.expect_100_continue:
            extensions: Any = self.scope.setdefault("extensions", {})
            extensions[EXTENSION] = DirectSocket(self, self.cycle)

    def on_body(self, body: bytes) -> None:
        if not self._skipping:
            super().on_body(body)

    def skip(self, count: int) -> None:
        """Move the parser past `count` bytes of the body that it has not seen."""
        self._skipping = True
        try:
            while count > 0 and self.parser is not None:
                self.parser.feed_data(_ZEROS[:count])
                count -= len(_ZEROS)
        finally:
            self._skipping = False

    def restart(self) -> None:
        """The body is complete: the next byte on this connection begins a request."""
        self.on_message_complete()
        if self.parser is not None:
            self.parser = httptools.HttpRequestParser(self)


class _Flow:
    """Whether bytes flow fast enough to keep a thread."""

    def __init__(self) -> None:
        self._until = time.monotonic() + IDLE_SECONDS
        self._enough = FLOW_BYTES

    def continues(self, total: int) -> bool:
        now = time.monotonic()
        if now < self._until:
            return True
        enough = total >= self._enough
        self._until, self._enough = now + IDLE_SECONDS, total + FLOW_BYTES
        return enough


class DirectSocket:
    """The socket of one request: a second file object for the socket that the transport owns.

    The request's scope holds this object, so it refers to the request weakly: a cycle would be left to the garbage
    collector.
    """

    def __init__(self, protocol: DirectProtocol, cycle: Any) -> None:
        self._protocol = protocol
        self._request = weakref.ref(cycle)
        self._socket: socket.socket | None = None

    @property
    def _cycle(self) -> Any:
        cycle = self._request()
        if cycle is None:
            raise ConnectionError("the request of this socket has ended")
        return cycle

    # ---------------------------------------------------------------- request body
    def begin_body(self) -> bytes | None:
        current = self._protocol.cycle is self._cycle and self._cycle.more_body
        if not current or self._cycle.disconnected or not self._open():
            return None
        self._protocol.flow.pause_reading()
        first = bytes(self._cycle.body)
        self._cycle.body = bytearray()
        self._cycle.message_event.clear()
        return first

    def read_into(self, write: Callable[[memoryview], None], count: int) -> int:
        buffer = memoryview(bytearray(min(BUFFER_BYTES, count)))
        total = filled = 0
        flow = _Flow()
        while total < count and flow.continues(total):
            size = min(len(buffer) - filled, count - total)
            try:
                received = self._socket_in_use().recv_into(buffer[filled:], size, socket.MSG_WAITALL)
            except BlockingIOError:  # nothing arrived for `IDLE_SECONDS`
                break
            if not received:
                raise ConnectionError("the client disconnected before the end of the body")
            total, filled = total + received, filled + received
            if filled == len(buffer):
                write(buffer)
                filled = 0
        if filled:
            write(buffer[:filled])
        return total

    def end_body(self, count: int, whole: bool) -> None:
        self._close()
        if whole:
            self._protocol.restart()
        else:
            self._protocol.skip(count)

    def abort_body(self) -> None:
        self._close()
        self._cycle.keep_alive = False

    # ---------------------------------------------------------------- response body
    async def begin_answer(self) -> bool:
        transport: Any = self._protocol.transport
        for _ in range(TURNS):
            if self._cycle.disconnected or not transport.get_write_buffer_size():
                break
            await asyncio.sleep(0)
        return not self._cycle.disconnected and not transport.get_write_buffer_size() and self._open()

    def send_file(self, descriptor: int, start: int, count: int) -> int:
        sent = 0
        flow = _Flow()
        while sent < count and flow.continues(sent):
            try:
                step = os.sendfile(
                    self._socket_in_use().fileno(), descriptor, start + sent, min(STEP_BYTES, count - sent)
                )
            except BlockingIOError:
                break
            if not step:
                break
            sent += step
        return sent

    def end_answer(self, count: int) -> None:
        self._close()
        self._cycle.expected_content_length -= count

    # ---------------------------------------------------------------- socket
    def _open(self) -> bool:
        if not _SLOTS.acquire(blocking=False):
            return False
        shared: Any = self._protocol.transport.get_extra_info("socket")
        self._socket = socket.socket(fileno=os.dup(shared.fileno()))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, _IDLE)
        self._socket.settimeout(None)  # of the event loop, too: both are one socket
        return True

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.setblocking(False)
            self._socket.close()
            self._socket = None
            _SLOTS.release()

    def _socket_in_use(self) -> socket.socket:
        if self._socket is None:
            raise ConnectionError("this socket is closed")
        return self._socket
