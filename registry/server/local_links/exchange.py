"""`Exchange`: handles one request with a signed link, in a thread, with plain socket calls.

- A PUT is hashed and written while it arrives, and synced to disk before its response. A GET goes from the page cache
  to the socket.
- A body that moves too slowly ends the connection, by the rule of `StallCounter`.
"""

import contextlib
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from email.utils import formatdate
from http import HTTPStatus

from registry.api import LINKS
from registry.errors import RegistryError
from registry.server.http.conditional import Part
from registry.server.http.middleware import StallCounter, choose_request_id
from registry.server.http.request_log import RequestRecord
from registry.server.local_links.backend import LinkBackend, problem_of
from registry.server.local_links.request import LinkRequest
from registry.server.storage.blobs import raise_unknown

BUFFER_BYTES = 2**20
STEP_BYTES = 8 * 2**20
SLICE_SECONDS = 1.0
"""How long one call may wait for the peer. A call moves a whole buffer, so that a thread seldom wakes up."""
LINGER_SECONDS = 2.0
"""How long a client that still sends may take to read why its body was refused."""
LINK_ROUTE = f"{LINKS}{{key}}"
_MORE = getattr(socket, "MSG_MORE", 0)
_LOG = logging.getLogger("registry.server")


class ReceiveBuffer:
    """Memory for the bodies that a thread receives one after the other. It is made for the first one."""

    def __init__(self) -> None:
        self._data = memoryview(b"")

    def view(self, size_bytes: int) -> memoryview:
        """Return memory for this many bytes, or for a full buffer if they are more."""
        size_bytes = min(size_bytes, BUFFER_BYTES)
        if len(self._data) < size_bytes:
            self._data = memoryview(bytearray(size_bytes))
        return self._data[:size_bytes]


class Exchange:
    """One request and its response. `received` is what was read from the socket: the head, and what came with it.

    Afterwards `status` is the response's (0 if none was begun), and `rest` what was received of the next request.
    """

    def __init__(
        self, sock: socket.socket, request: LinkRequest, context: LinkBackend, received: bytes, buffer: ReceiveBuffer
    ) -> None:
        self._socket, self._request, self._context, self._buffer = sock, request, context, buffer
        self._counter = StallCounter(context.stall_seconds)
        self._request_id = choose_request_id(request.headers.get("x-request-id", "").encode("latin-1")).decode()
        self._remaining = request.link.size_bytes if request.method == "PUT" else 0
        self.rest = received[request.head_bytes :]
        self.status = 0
        self._sent_bytes = 0
        self._error: RegistryError | None = None
        self._started_at = time.perf_counter()

    def run(self) -> bool:
        """Handle the request; return whether the connection can be used again. Raises nothing."""
        with _blocking(self._socket, min(SLICE_SECONDS, self._context.stall_seconds)):
            try:
                self._receive() if self._request.method == "PUT" else self._send_blob()
            except RegistryError as error:
                self._refuse(error)
            except OSError:  # the client has left
                return False
            except Exception:
                _LOG.exception("%s of %s by a link failed", self._request.method, self._request.link.key)
                return False
            return self._keeps_alive

    def describe(self) -> RequestRecord:
        """What the log says about it. The bytes of a response count as a whole."""
        received = self._request.link.size_bytes - self._remaining if self._request.method == "PUT" else 0
        problem, detail = (self._error.code, self._error.detail) if self._error else ("", "")
        return RequestRecord(
            self._request_id, self._request.link.owner, self._request.method, LINK_ROUTE, self.status,
            time.perf_counter() - self._started_at, received, self._sent_bytes,
            problem, detail if self.status >= 500 else "",
        )  # fmt: skip

    @property
    def _keeps_alive(self) -> bool:
        return self._request.keeps_alive and not self._remaining and not self._context.is_stopping()

    @contextlib.contextmanager
    def _moving(self) -> Iterator[list[int]]:
        """Time one call that moves bytes, whose count the block appends. `Unavailable` (BODY_STALLED)."""
        counts: list[int] = []
        started_at = time.monotonic()
        yield counts
        if self._counter.is_stalled(time.monotonic() - started_at, sum(counts)):
            raise self._counter.error()

    # ---------------------------------------------------------------- PUT
    def _receive(self) -> None:
        self._context.receive(self._request.link, self._body())
        self._respond(204, {})

    def _body(self) -> Iterator[memoryview]:
        """Yield the body. A chunk is valid until the next one."""
        if "expect" in self._request.headers and not self.rest:
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
        buffer = self._buffer.view(self._remaining)
        while self._remaining:
            size = min(len(buffer), self._remaining)
            filled = min(size, len(self.rest))
            buffer[:filled], self.rest = self.rest[:filled], self.rest[filled:]
            while filled < size:
                filled += self._receive_into(buffer[filled:size])
            self._remaining -= size
            yield buffer[:size]

    def _receive_into(self, buffer: memoryview) -> int:
        with self._moving() as moved, contextlib.suppress(BlockingIOError):
            count = self._socket.recv_into(buffer, 0, socket.MSG_WAITALL)
            if not count:
                raise ConnectionError("the client disconnected before the end of the body")
            moved.append(count)
        return sum(moved)

    # ---------------------------------------------------------------- GET
    def _send_blob(self) -> None:
        part = self._context.find_part(self._request.link, self._request.headers)
        path = self._context.blobs.local_path(self._request.link.key)
        if path is None:
            raise_unknown(self._request.link.key)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would block
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise_unknown(self._request.link.key)
            self._sent_bytes = part.length
            self._respond(part.status, part.headers, more=bool(part.length))
            self._send_part(descriptor, part)
        finally:
            os.close(descriptor)

    def _send_part(self, descriptor: int, part: Part) -> None:
        start, end = part.start, part.start + part.length
        while start < end:
            with self._moving() as moved, contextlib.suppress(BlockingIOError):
                count = os.sendfile(self._socket.fileno(), descriptor, start, min(STEP_BYTES, end - start))
                if not count:
                    raise ConnectionError("the file became shorter while it was sent")
                moved.append(count)
            start += sum(moved)

    # ---------------------------------------------------------------- head of the response
    def _respond(self, status: int, headers: dict[str, str], body: bytes = b"", *, more: bool = False) -> None:
        self.status = status
        lines = {"Date": formatdate(usegmt=True), **headers, "X-Request-Id": self._request_id}
        if not self._keeps_alive:
            lines["Connection"] = "close"
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items())
        self._send(f"{head}\r\n".encode() + body, more=more)

    def _send(self, content: bytes, *, more: bool = False) -> None:
        data = memoryview(content)
        while data:
            with self._moving() as moved, contextlib.suppress(BlockingIOError):
                moved.append(self._socket.send(data, _MORE if more else 0))
            data = data[sum(moved) :]

    def _refuse(self, error: RegistryError) -> None:
        """Response with a problem document. The connection is closed unless the whole body was read."""
        self._error = error
        if self.status:
            self._remaining = 1  # the response is incomplete
            return
        status, body, headers = problem_of(error, self._request_id)
        self._sent_bytes = len(body)
        with contextlib.suppress(OSError, RegistryError):
            self._respond(status, headers, body)
            if self._remaining:
                self._linger()

    def _linger(self) -> None:
        """Read on for a moment: closing a socket with unread bytes would take the response back."""
        self._socket.shutdown(socket.SHUT_WR)
        until = time.monotonic() + LINGER_SECONDS
        buffer = bytearray(BUFFER_BYTES)
        while self._socket.recv_into(buffer) and time.monotonic() < until:
            pass


@contextlib.contextmanager
def _blocking(sock: socket.socket, seconds: float) -> Iterator[None]:
    """Let each call wait in the kernel for a few seconds. The event loop needs a socket that never waits."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, limit)
    sock.settimeout(None)
    try:
        yield
    finally:
        sock.setblocking(False)
