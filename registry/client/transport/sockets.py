"""`Sockets`: requests and files over plain HTTP connections, with little Python between disk and network.

- Upload: `sendfile` from the page cache; over TLS a buffer at a time. Download: the socket fills one buffer of 1 MiB
  per connection. Memory does not depend on the size of a file.
- A connection is used by one thread at a time, kept for the origin's next request, and closed after any error.
- Answers and exceptions are httpx's. No token is added here, and no redirect is followed.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import math
import os
import select
import socket
import ssl
import struct
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

import httpx

from registry.api import PREFIX
from registry.client.transport.links import check_peer
from registry.client.transport.responses import wrong_answer
from registry.errors import Corrupt, Invalid, RegistryError

BUFFER_BYTES = 2**20
STEP_BYTES = 8 * 2**20
"""Steps in which an upload reports progress."""
CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
KEPT_LIMIT = 16
LEAST_BYTES_PER_SECOND = 2**10
"""A body that moves more slowly than this over `READ_SECONDS` ends as a timeout does."""
ANSWER_LIMIT_BYTES = 32 * 2**20
"""Limit of one answer of the registry that is no file; lists of a whole base have `LIST_LIMIT_BYTES`."""
LIST_LIMIT_BYTES = 256 * 2**20
ERROR_LIMIT_BYTES = 2**20
"""Limit of an answer to a transfer of a file."""
ANSWER_SECONDS = 120.0
"""An answer must be there this long after the time that the other side may think, however it arrives."""

_BLOCKS = sys.platform == "linux"
"""Whether sockets can wait for a whole buffer, with a timeout."""

Advance = Callable[[int], None]
Take = Callable[[memoryview], None]


class Sockets:
    """Connections by origin. Thread-safe. `registry_url` is empty if the registry is in this process."""

    def __init__(self, user_agent: str, registry_url: str = "") -> None:
        self._user_agent = user_agent
        self._registry_url = registry_url
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        self._tls: ssl.SSLContext | None = None

    def close(self) -> None:
        with self._lock:
            idle, self._kept = self._kept, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, seconds: float, limit_bytes: int
    ) -> httpx.Response:
        """A request whose answer is read whole. `seconds`: timeout of each read; `Corrupt` for over `limit_bytes`."""
        all_headers = (
            {**headers, "Content-Length": str(len(body))} if body or method not in ("GET", "HEAD") else headers
        )
        with self._exchange(method, url, all_headers, body, seconds) as (connection, request):
            return _read(_answer_of(connection), request, limit_bytes)

    def put(
        self, url: str, headers: Mapping[str, str], file: io.FileIO, start: int, length: int, advance: Advance
    ) -> httpx.Response:
        """Send `length` bytes of a file from `start` on as the body of a PUT; the answer with its body."""
        all_headers = {**headers, "Content-Length": str(length)}
        with self._exchange("PUT", url, all_headers) as (connection, request):
            try:
                _send(connection, file, start, length, advance)
            except (BrokenPipeError, ConnectionResetError):
                # The other side closed early; if it said why, that is the answer.
                with contextlib.suppress(OSError, http.client.HTTPException):
                    return _read(_answer_of(connection), request)
                raise
            return _read(_answer_of(connection), request)

    def get(self, url: str, headers: Mapping[str, str], take: Take) -> httpx.Response:
        """GET; the body of a 200 or 206 goes to `take` piece by piece, any other is in the answer."""
        all_headers = {**headers, "Accept-Encoding": "identity"}
        with self._exchange("GET", url, all_headers) as (connection, request):
            answer = _answer_of(connection)
            if answer.status not in (200, 206):
                return _read(answer, request)
            answer.reader.until = math.inf
            if (answer.status == 206) != ("Range" in headers):
                raise httpx.RemoteProtocolError("the answer is not the requested range", request=request)
            missing = _receive(connection, answer, take)
            if missing:
                raise httpx.ReadError(f"the answer broke off {missing} bytes before its end", request=request)
            return _response(answer, b"", request)

    # ---------------------------------------------------------------- connections
    @contextlib.contextmanager
    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"", seconds: float = READ_SECONDS
    ) -> Iterator[tuple[http.client.HTTPConnection, httpx.Request]]:
        """A connection on which the request, or its head, was sent; kept for the next one after success."""
        parts = urlsplit(url)
        kind = "api" if parts.path.startswith(PREFIX) and "/links/" not in parts.path else "link"
        origin = (parts.scheme, parts.netloc + kind)
        request = httpx.Request(method, url)
        connection = self._take(origin) or self._open(parts, request)
        try:
            connection.sock.settimeout(seconds)
            connection.putrequest(method, _target(parts), skip_accept_encoding=True)
            for name, value in {"User-Agent": self._user_agent, **headers}.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            yield connection, request
        except TimeoutError as e:
            connection.close()
            why = str(e) if isinstance(e, _TooSlow) else f"no byte moved for {seconds:.0f} seconds"
            raise httpx.ReadTimeout(why, request=request) from e
        except (OSError, http.client.HTTPException) as e:
            connection.close()
            raise httpx.ReadError(str(e) or type(e).__name__, request=request) from e
        except BaseException:
            connection.close()
            raise
        if connection.sock is not None:
            self._keep(origin, connection)

    def _open(self, parts: SplitResult, request: httpx.Request) -> http.client.HTTPConnection:
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=CONNECT_SECONDS, context=self.tls()
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
            if self._registry_url:
                check_peer(str(request.url), str(connection.sock.getpeername()[0]), self._registry_url)
        except OSError as e:
            raise httpx.ConnectError(str(e), request=request) from e
        except RegistryError:
            connection.close()
            raise
        return connection

    def tls(self) -> ssl.SSLContext:
        """The TLS context, made on first use. `Invalid` if its files cannot be read."""
        with self._lock:
            try:
                self._tls = self._tls or httpx.create_ssl_context()
            except OSError as e:
                named = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR", "")
                why = f"the certificates in {named!r} (SSL_CERT_FILE, SSL_CERT_DIR) cannot be read: {e.strerror or e}"
                raise Invalid("SETTING_INVALID", why) from e
            return self._tls

    def _take(self, origin: tuple[str, str]) -> http.client.HTTPConnection | None:
        """A kept connection without unread data: unrequested data means that the other side closed it."""
        while True:
            with self._lock:
                kept = self._kept.get(origin)
                if not kept:
                    return None
                connection = kept.pop()
            if not _has_data(connection.sock):
                return connection
            connection.close()

    def _keep(self, origin: tuple[str, str], connection: http.client.HTTPConnection) -> None:
        with self._lock:
            idle = self._kept.setdefault(origin, [])
            if len(idle) < KEPT_LIMIT:
                idle.append(connection)
                return
        connection.close()


class ThroughputGuard:
    """Ends a request whose body moves now and then but too slowly, though no pause is long enough to time out."""

    def __init__(self, url: str) -> None:
        self._request = httpx.Request("GET", url)
        self._since: float | None = None
        self._bytes = 0

    def moved(self, count: int) -> None:
        """Count bytes, from the first on. `httpx.ReadTimeout` if they are too few."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        self._bytes += count
        seconds = now - self._since
        if seconds < READ_SECONDS:
            return
        if self._bytes < LEAST_BYTES_PER_SECOND * seconds:
            message = f"only {self._bytes} bytes moved in {seconds:.0f} seconds"
            raise httpx.ReadTimeout(message, request=self._request)
        self._since, self._bytes = now, 0


def _has_data(sock: socket.socket) -> bool:
    """Whether there is data to read. `select` supports no descriptor above 1,023, and engines have thousands."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def direct(url: str) -> bool:
    """Whether this URL is reached without a proxy. httpx does the others."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    if not (proxies.get(parts.scheme) or proxies.get("all")):
        return parts.scheme in ("http", "https")
    return bool(urllib.request.proxy_bypass(parts.hostname or ""))


def _target(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _send(connection: http.client.HTTPConnection, file: io.FileIO, start: int, length: int, advance: Advance) -> None:
    end = start + length
    encrypted = isinstance(connection.sock, ssl.SSLSocket)
    buffer = memoryview(bytearray(BUFFER_BYTES if encrypted else 0))
    with contextlib.nullcontext() if encrypted else _blocking(connection.sock):
        while start < end:
            if encrypted:
                sent = os.preadv(file.fileno(), [buffer[: end - start]], start)
                connection.sock.sendall(buffer[:sent])
            elif _BLOCKS:
                sent = os.sendfile(connection.sock.fileno(), file.fileno(), start, min(STEP_BYTES, end - start))
            else:
                sent = connection.sock.sendfile(file, start, min(STEP_BYTES, end - start))
            if not sent:
                raise truncated(file)
            start += sent
            advance(sent)


def truncated(file: io.FileIO) -> Invalid:
    """The error for a file that was truncated while it was sent."""
    return Invalid("FOLDER_INVALID", f"{file.name} was truncated while it was pushed; wait for its writer")


def _receive(connection: http.client.HTTPConnection, answer: http.client.HTTPResponse, take: Take) -> int:
    """Receive the body of an answer, a full buffer at a time; how many bytes are missing."""
    buffer = bytearray(BUFFER_BYTES)
    view = memoryview(buffer)
    if not _BLOCKS or isinstance(connection.sock, ssl.SSLSocket) or answer.length is None or answer.will_close:
        while count := answer.readinto(buffer):
            take(view[:count])
        return answer.length or 0
    first = answer.read1(BUFFER_BYTES)  # what arrived with the head, or what is next
    take(memoryview(first))
    remaining = answer.length or 0
    with _blocking(connection.sock):
        while remaining:
            count = connection.sock.recv_into(buffer, min(remaining, BUFFER_BYTES), socket.MSG_WAITALL)
            if not count:
                return remaining
            take(view[:count])
            remaining -= count
    answer.close()
    return 0


@contextlib.contextmanager
def _blocking(sock: socket.socket) -> Iterator[None]:
    """Let one call move a whole buffer, so that the interpreter is needed once for it and not for each packet."""
    if not _BLOCKS:
        yield
        return
    seconds = sock.gettimeout()
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(READ_SECONDS), int(READ_SECONDS % 1 * 1e6)))
    sock.settimeout(None)
    try:
        yield
    except BlockingIOError as e:
        raise TimeoutError from e
    finally:
        sock.settimeout(seconds)


def _answer_of(connection: http.client.HTTPConnection) -> _Answer:
    connection.response_class = _Answer
    return cast(_Answer, connection.getresponse())


def _read(
    answer: http.client.HTTPResponse, request: httpx.Request, limit_bytes: int = ERROR_LIMIT_BYTES
) -> httpx.Response:
    """The answer with its body. `Corrupt` (ANSWER_INVALID) over the limit."""
    body = answer.read(limit_bytes)
    if not answer.isclosed() and answer.read(1):
        raise too_long(request, limit_bytes)
    return _response(answer, body, request)


def too_long(request: httpx.Request, limit_bytes: int) -> Corrupt:
    """The error for an answer over the limit."""
    return wrong_answer(f"the answer to {request.url.path} of {request.url.host} is over {limit_bytes} bytes")


class _TooSlow(TimeoutError):
    """An answer arrived in time byte by byte, and not as a whole."""


class _Reader(io.RawIOBase):
    """Reads a socket until a moment. `held` keeps the socket open, as a file of it does."""

    def __init__(self, sock: socket.socket, held: io.BufferedReader, until: float) -> None:
        self._socket, self._held, self.until = sock, held, until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        seconds = self._socket.gettimeout()
        remaining = max(self.until - time.monotonic(), 0.001)
        if seconds is not None and remaining < seconds:
            self._socket.settimeout(remaining)
        try:
            return self._socket.recv_into(buffer)
        except TimeoutError as e:
            if seconds is not None and remaining < seconds:
                raise _TooSlow("the answer did not arrive as a whole in time") from e
            raise
        finally:
            self._socket.settimeout(seconds)

    def close(self) -> None:
        self._held.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer that is read by a `_Reader`: single bytes now and then do not keep it alive."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        until = time.monotonic() + (sock.gettimeout() or READ_SECONDS) + ANSWER_SECONDS
        self.reader = _Reader(sock, self.fp, until)
        self.fp = io.BufferedReader(self.reader)


def _response(answer: http.client.HTTPResponse, body: bytes, request: httpx.Request) -> httpx.Response:
    skipped = ("content-length", "transfer-encoding", "content-encoding")
    headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in skipped]
    return httpx.Response(answer.status, headers=headers, content=body, request=request)
