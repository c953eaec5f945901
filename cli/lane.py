"""`DirectProtocol`: uvicorn's HTTP protocol, which also offers each request its socket (`server/http/direct_io.py`).

It reaches into uvicorn: the parser, the request's `body` and `more_body`, the answer's `expected_content_length`.
tests/cli/test_lane.py runs every use of them against the installed version, and `offered` looks for them before.

Invariants
- The socket is lent to a thread only while the transport reads nothing and has nothing left to write. It blocks then,
  for `IDLE_SECONDS`: one call moves a megabyte, and the thread needs the interpreter once for it and not once a packet.
- Every byte of a body is seen once, by the thread or by the parser; the parser is brought to where the thread ended.
- A thread is lent only while bytes flow: neither a pause nor a drip keeps it.
- Whatever goes wrong in a thread ends the connection after the answer.
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
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from registry.server.http.direct_io import EXTENSION, IDLE_SECONDS, SLOTS

BUFFER_BYTES = 2**20
FLOW_BYTES = 2**18
"""Whoever moves less than this in `IDLE_SECONDS` goes back to the event loop."""
TURNS = 20
"""Turns of the event loop in which the head of an answer is normally sent; a peer that takes longer is a slow one."""
HEAD_LIMIT_BYTES = 64 * 2**10
"""What the request line and the headers of one request may have together."""
STEP_BYTES = 8 * 2**20
"""What one call sends, at most: between them it is asked whether bytes still flow."""
_IDLE = struct.pack("ll", int(IDLE_SECONDS), int(IDLE_SECONDS % 1 * 1e6))
_ZEROS = bytes(2**16)
_SLOTS = threading.BoundedSemaphore(SLOTS)


class DirectProtocol(HttpToolsProtocol):
    """Offers a lane to each request over plain HTTP, also to one that came before the last answer was through."""

    _aside = False
    """True while the parser is told of bytes that a thread has read already."""
    _head_bytes = 0
    _over = b""
    """The status of a request whose head was too large, in place of the plain 400."""

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url), b"414 URI Too Long")
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value), b"431 Request Header Fields Too Large")
        super().on_header(name, value)

    def _count(self, size_bytes: int, over: bytes) -> None:
        """The parser has no limit of its own. What is over ours is answered by `over`, and the connection ends."""
        self._head_bytes += size_bytes
        if self._head_bytes > HEAD_LIMIT_BYTES:
            self._over = over
            raise httptools.HttpParserError("the head of the request is too large")

    def send_400_response(self, msg: str) -> None:
        if not self._over:
            super().send_400_response(msg)
            return
        self.transport.write(b"HTTP/1.1 " + self._over + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self.scheme == "http" and self.cycle is not None and not self.expect_100_continue:
            extensions: Any = self.scope.setdefault("extensions", {})
            extensions[EXTENSION] = SocketLane(self, self.cycle)

    def on_body(self, body: bytes) -> None:
        if not self._aside:
            super().on_body(body)

    def skip(self, count: int) -> None:
        """Bring the parser past `count` bytes of the body that it has not seen."""
        self._aside = True
        try:
            while count > 0 and self.parser is not None:
                self.parser.feed_data(_ZEROS[:count])
                count -= len(_ZEROS)
        finally:
            self._aside = False

    def restart(self) -> None:
        """The body is complete: the next byte on this connection begins a request."""
        self.on_message_complete()
        if self.parser is not None:
            self.parser = httptools.HttpRequestParser(self)


class _Flow:
    """Whether bytes still come fast enough to be worth a thread. A peer that drips must not hold one for ever."""

    def __init__(self) -> None:
        self._until = time.monotonic() + IDLE_SECONDS
        self._enough = FLOW_BYTES

    def goes_on(self, total: int) -> bool:
        now = time.monotonic()
        if now < self._until:
            return True
        enough = total >= self._enough
        self._until, self._enough = now + IDLE_SECONDS, total + FLOW_BYTES
        return enough


class SocketLane:
    """The lane of one request. A second connection to the same socket, which the transport keeps on owning.

    The request's scope holds its lane, so a lane must not hold its request: a ring is not freed when it ends but by the
    collector of garbage, which then stands in everybody's way for milliseconds.
    """

    def __init__(self, protocol: DirectProtocol, cycle: Any) -> None:
        self._protocol = protocol
        self._request = weakref.ref(cycle)
        self._socket: socket.socket | None = None

    @property
    def _cycle(self) -> Any:
        """The request, while it runs; nobody has another use for its lane."""
        cycle = self._request()
        if cycle is None:
            raise ConnectionError("the request of this lane is over")
        return cycle

    # ---------------------------------------------------------------- a body comes in
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
        while total < count and flow.goes_on(total):
            wanted = min(len(buffer) - filled, count - total)
            try:
                got = self._of().recv_into(buffer[filled:], wanted, socket.MSG_WAITALL)
            except BlockingIOError:  # nothing came for `IDLE_SECONDS`
                break
            if not got:
                raise ConnectionError("the sender left before the end of the body")
            total, filled = total + got, filled + got
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

    # ---------------------------------------------------------------- a file goes out
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
        while sent < count and flow.goes_on(sent):
            try:
                step = os.sendfile(self._of().fileno(), descriptor, start + sent, min(STEP_BYTES, count - sent))
            except BlockingIOError:
                break
            if not step:
                break
            sent += step
        return sent

    def end_answer(self, count: int) -> None:
        self._close()
        self._cycle.expected_content_length -= count

    # ---------------------------------------------------------------- inside
    def _open(self) -> bool:
        if not _SLOTS.acquire(blocking=False):
            return False
        lent: Any = self._protocol.transport.get_extra_info("socket")
        self._socket = socket.socket(fileno=os.dup(lent.fileno()))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, _IDLE)
        self._socket.settimeout(None)  # for the event loop, too: both are one socket
        return True

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.setblocking(False)
            self._socket.close()
            self._socket = None
            _SLOTS.release()

    def _of(self) -> socket.socket:
        if self._socket is None:
            raise ConnectionError("this lane is closed")
        return self._socket
