"""`Exchange`: answers one request with a signed link, in a thread, with plain socket calls.

- A PUT is hashed and written while it arrives, and synced to disk before its answer. A GET goes from the page cache to
  the socket.
- As long as nothing was taken from the socket, an error hands the connection over to the application, which answers.
- A body that moves too slowly ends the connection, by the rule of `SlowBodyGuard`: no transfer takes longer than its
  bytes at `BODY_BYTES_PER_SECOND` and `stall_seconds` more.
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

from registry.errors import NotFound, RegistryError, Unavailable
from registry.server import failpoints
from registry.server.http.middleware import BODY_BYTES_PER_SECOND, choose_request_id
from registry.server.http.problems import status_of
from registry.server.http.ranges import LINK_HEADERS, Part, select_part
from registry.server.local_links.request import LinkRequest
from registry.server.storage.blobs import BlobStore, BlobWriter, digest_of

BUFFER_BYTES = 2**20
STEP_BYTES = 8 * 2**20
SLICE_SECONDS = 1.0
"""How long one call may wait for the peer. A call moves a whole buffer, so that a thread seldom wakes up."""
LINGER_SECONDS = 2.0
"""How long a client that still sends may take to read why its body was refused."""
_MORE = getattr(socket, "MSG_MORE", 0)
_LOG = logging.getLogger("registry.server")


class Next(enum.Enum):
    """What becomes of the connection: it waits for its next request, goes to the application, or is closed."""

    WAIT = enum.auto()
    HAND_OVER = enum.auto()
    CLOSE = enum.auto()


@dataclass(frozen=True, slots=True)
class Context:
    """What an exchange needs of its server. `upload` is a context in which a blob of an owner is received."""

    blobs: BlobStore
    upload: Callable[[str, str], AbstractContextManager[None]]
    stall_seconds: float
    is_stopping: Callable[[], bool]


class Exchange:
    """One request and its answer. `status` is the answer's, 0 if none was begun."""

    def __init__(self, sock: socket.socket, request: LinkRequest, context: Context) -> None:
        self._socket, self._request, self._context = sock, request, context
        self._guard = StallGuard(context.stall_seconds)
        self._request_id = choose_request_id(request.headers.get("x-request-id", "").encode()).decode()
        self._consumed = False
        self._remaining = request.link.size_bytes if request.method == "PUT" else 0
        self.status = 0

    def run(self) -> Next:
        """Answer the request. Raises nothing."""
        with _blocking(self._socket, min(SLICE_SECONDS, self._context.stall_seconds)):
            return self._run()

    def _run(self) -> Next:
        try:
            self._receive() if self._request.method == "PUT" else self._send_blob()
        except RegistryError as error:
            if not self._consumed:
                return Next.HAND_OVER
            return self._refuse(error)
        except OSError:  # the client has left
            return Next.CLOSE if self._consumed else Next.HAND_OVER
        except Exception:
            _LOG.exception("%s of %s by a link failed", self._request.method, self._request.link.key)
            return Next.CLOSE
        return Next.WAIT if self._keeps_alive else Next.CLOSE

    @property
    def _keeps_alive(self) -> bool:
        return self._request.keeps_alive and not self._remaining and not self._context.is_stopping()

    # ---------------------------------------------------------------- PUT
    def _receive(self) -> None:
        link = self._request.link
        with self._context.upload(link.owner, link.key):
            writer = self._context.blobs.open_writer(link.key, limit_bytes=link.size_bytes)
            try:
                self._take_head()
                self._receive_body(writer)
                failpoints.reach("upload.received")
                writer.finish()
                failpoints.reach("upload.written")
            except BaseException:
                writer.abort()
                raise
        self._answer(204, {})

    def _receive_body(self, writer: BlobWriter) -> None:
        buffer = memoryview(bytearray(min(BUFFER_BYTES, self._remaining)))
        while self._remaining:
            size, filled = min(len(buffer), self._remaining), 0
            while filled < size:
                filled += self._receive_into(buffer[filled:size])
            self._remaining -= size
            writer.write(buffer[:size])
            failpoints.reach("upload.half")

    def _receive_into(self, buffer: memoryview) -> int:
        with self._guard.moving() as moved, contextlib.suppress(BlockingIOError):
            count = self._socket.recv_into(buffer, 0, socket.MSG_WAITALL)
            if not count:
                raise ConnectionError("the client disconnected before the end of the body")
            moved.append(count)
        return sum(moved)

    # ---------------------------------------------------------------- GET
    def _send_blob(self) -> None:
        link, headers = self._request.link, self._request.headers
        path = self._context.blobs.local_path(link.key)
        if path is None:
            raise NotFound("BLOB_UNKNOWN", f"blob {digest_of(link.key)} is not in this store")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            etag = f'"{digest_of(link.key)}"'
            part = select_part(headers.get("range", ""), headers.get("if-range"), etag, link.size_bytes)
            if not stat.S_ISREG(status.st_mode) or status.st_size != link.size_bytes or part.status == 416:
                raise NotFound("BLOB_UNKNOWN", "the application answers")
            self._take_head()
            self._answer(
                part.status,
                {"ETag": etag, **LINK_HEADERS, **part.headers},
                more=True,
            )
            self._send_part(descriptor, part)
        finally:
            os.close(descriptor)

    def _send_part(self, descriptor: int, part: Part) -> None:
        start, end = part.start, part.start + part.length
        while start < end:
            with self._guard.moving() as moved, contextlib.suppress(BlockingIOError):
                count = os.sendfile(self._socket.fileno(), descriptor, start, min(STEP_BYTES, end - start))
                if not count:
                    raise ConnectionError("the file became shorter while it was sent")
                moved.append(count)
            start += sum(moved)

    # ---------------------------------------------------------------- head of request and answer
    def _take_head(self) -> None:
        """Take the head of the request, which has arrived, from the socket."""
        missing = self._request.head_bytes
        self._consumed = True
        while missing:
            missing -= len(self._socket.recv(missing)) or missing

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"", *, more: bool = False) -> None:
        self.status = status
        lines = {"Date": formatdate(usegmt=True), **headers, "X-Request-Id": self._request_id}
        if not self._keeps_alive:
            lines["Connection"] = "close"
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items())
        data = memoryview(f"{head}\r\n".encode() + body)
        while data:
            with self._guard.moving() as moved, contextlib.suppress(BlockingIOError):
                moved.append(self._socket.send(data, _MORE if more else 0))
            data = data[sum(moved) :]

    def _refuse(self, error: RegistryError) -> Next:
        """Answer with a problem document. The connection is closed unless the whole body was read."""
        if self.status:
            return Next.CLOSE
        status = status_of(error)
        body = json.dumps(error.to_problem() | {"status": status, "request_id": self._request_id}).encode()
        headers = {"Content-Type": "application/problem+json", "Content-Length": str(len(body))}
        if error.retry_after_seconds is not None:
            headers["Retry-After"] = str(error.retry_after_seconds)
        with contextlib.suppress(OSError, RegistryError):
            self._answer(status, headers, body)
            if self._remaining:
                self._linger()
        return Next.WAIT if self._keeps_alive else Next.CLOSE

    def _linger(self) -> None:
        """Read on for a moment: closing a socket with unread bytes would take the answer back."""
        self._socket.shutdown(socket.SHUT_WR)
        until = time.monotonic() + LINGER_SECONDS
        buffer = bytearray(BUFFER_BYTES)
        while self._socket.recv_into(buffer) and time.monotonic() < until:
            pass


class StallGuard:
    """Ends a transfer that moves too slowly."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waited_seconds = 0.0
        self._bytes = 0

    @contextlib.contextmanager
    def moving(self) -> Iterator[list[int]]:
        """Time one call that moves bytes, whose count the block appends. `Unavailable` (BODY_STALLED)."""
        counts: list[int] = []
        started_at = time.monotonic()
        yield counts
        self._waited_seconds += time.monotonic() - started_at
        self._bytes += sum(counts)
        if self._bytes >= BODY_BYTES_PER_SECOND * self._seconds:
            self._waited_seconds, self._bytes = 0.0, 0
        elif self._waited_seconds >= self._seconds:
            raise Unavailable(
                "BODY_STALLED",
                f"body: less than {BODY_BYTES_PER_SECOND} bytes a second moved for {self._seconds:g} seconds",
                next_step="send the request again; blobs that were received are not requested again",
            )


@contextlib.contextmanager
def _blocking(sock: socket.socket, seconds: float) -> Iterator[None]:
    """Let each call wait in the kernel for some seconds. The event loop needs a socket that never waits."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, limit)
    sock.settimeout(None)
    try:
        yield
    finally:
        sock.setblocking(False)
