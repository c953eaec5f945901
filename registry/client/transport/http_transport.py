"""`HttpTransport`: sends a request and reads its response, by the standard library's `http.client`.

- Upload: `sendfile` from the page cache; over TLS a buffer at a time. Download: the socket fills one buffer of 1 MiB.
  Memory does not depend on the size of a file.
- A connection is used by one thread at a time, kept for the next request to its origin, and closed after any error.
- No token is added here, and no redirect is followed.
"""

from __future__ import annotations

import base64
import contextlib
import functools
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import SplitResult, unquote, urlsplit

from registry.api import LINKS
from registry.client.transport import (
    BUFFER_BYTES,
    DEADLINE,
    READ_SECONDS,
    FileRange,
    ResponseStream,
    ThroughputGuard,
    TransportError,
    invalid_response,
)
from registry.errors import Invalid

STEP_BYTES = 8 * 2**20
"""Steps in which an upload reports progress."""
CONNECT_SECONDS = 10.0
IDLE_LIMIT = 16
ROUTES_LIMIT = 64
CHUNKED_BYTES = 2**16
"""The buffer for a body of chunks: what is around them may be as much."""
RESPONSE_SECONDS = 120.0
"""A response must be there this long after the time that the other side may think, however it arrives."""
_WAITS = sys.platform == "linux"
"""Whether a socket can wait for a whole buffer, with a timeout."""


class HttpTransport:
    """A `Transport` over sockets, through the proxies that the environment names.

    `check_peer` is called with a URL and the address that a direct connection for it has; it raises what forbids it.
    """

    def __init__(self, user_agent: str, check_peer: Callable[[str, str], None] = lambda _url, _address: None) -> None:
        self._user_agent = user_agent
        self._check_peer = check_peer
        self._lock = threading.Lock()
        self._idle: dict[_Route, list[http.client.HTTPConnection]] = {}
        self._tls: ssl.SSLContext | None = None
        self._route = functools.lru_cache(maxsize=ROUTES_LIMIT)(_Route.of)
        """The environment is read once for each origin: it takes as long as a request's other work in Python."""

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def open(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Iterable[bytes], *, seconds: float
    ) -> ResponseStream:
        """Send a request on an idle or a new connection."""
        parts = urlsplit(url)
        route = self._route(parts.scheme, parts.netloc, LINKS in parts.path)
        connection = self._take(route) or self._connect(route, url)
        seconds = _until_deadline(seconds)
        lines = {"User-Agent": self._user_agent, "Accept-Encoding": "identity", **headers}
        if route.names_url:
            lines.update(route.authorization)
        if isinstance(body, bytes) and (body or method not in ("GET", "HEAD")):
            lines["Content-Length"] = str(len(body))
        try:
            with _as_transport_error(url, seconds):
                connection.sock.settimeout(seconds)
                connection.putrequest(method, route.target(url), skip_accept_encoding=True)
                for name, value in lines.items():
                    connection.putheader(name, value)
                connection.endheaders(body if isinstance(body, bytes) and body else None)
                if isinstance(body, bytes) or _send(connection, body):
                    return _HttpStream(self, route, connection, url, seconds)
                with contextlib.suppress(OSError, http.client.HTTPException):  # the other side closed: did it say why?
                    return _HttpStream(self, route, connection, url, seconds)
                raise ConnectionResetError("the connection was closed while the body was sent")
        except BaseException:
            connection.close()
            raise

    def _connect(self, route: _Route, url: str) -> http.client.HTTPConnection:
        seconds = _until_deadline(CONNECT_SECONDS)
        if route.is_encrypted:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                route.host, route.port, timeout=seconds, context=self._tls_context()
            )
        else:
            connection = http.client.HTTPConnection(route.host, route.port, timeout=seconds)
        if route.tunnel:
            connection.set_tunnel(*route.tunnel, headers=dict(route.authorization))
        try:
            with _as_transport_error(url, seconds):
                connection.connect()
            if not route.tunnel and not route.names_url:
                self._check_peer(url, str(connection.sock.getpeername()[0]))
        except BaseException:
            connection.close()
            raise
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        """Return the TLS context, made on first use. `Invalid` if its files cannot be read."""
        file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
        with self._lock:
            try:
                self._tls = self._tls or ssl.create_default_context(cafile=file or None, capath=folder or None)
            except OSError as e:
                why = f"{file or folder!r} (SSL_CERT_FILE, SSL_CERT_DIR) cannot be read: {e.strerror or e}"
                raise Invalid("SETTING_INVALID", f"the certificates in {why}") from e
            return self._tls

    def _take(self, route: _Route) -> http.client.HTTPConnection | None:
        """Take an idle connection without unread data: unrequested data means that the other side closed it."""
        while True:
            with self._lock:
                idle = self._idle.get(route)
                if not idle:
                    return None
                connection = idle.pop()
            if not has_data(connection.sock):
                return connection
            connection.close()

    def keep(self, route: _Route, connection: http.client.HTTPConnection) -> None:
        """Keep a connection for the next request."""
        with self._lock:
            idle = self._idle.setdefault(route, [])
            if len(idle) < IDLE_LIMIT:
                idle.append(connection)
                return
        connection.close()


@dataclass(frozen=True, slots=True)
class _Route:
    """How an origin is reached. A registry handles links in other threads, so they have connections of their own.

    `tunnel`: host and port for a proxy's CONNECT. `names_url`: the request line names the whole URL, for a proxy.
    """

    host: str
    port: int
    is_encrypted: bool
    is_link: bool
    tunnel: tuple[str, int] | None = None
    names_url: bool = False
    authorization: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """The header for the proxy, which a tunnel gets in its CONNECT, and other proxies in each request."""

    @classmethod
    def of(cls, scheme: str, location: str, is_link: bool) -> _Route:
        """Return the route to an origin, by the environment. `Invalid` (SETTING_INVALID) for a wrong proxy."""
        parts = SplitResult(scheme, location, "", "", "")
        is_encrypted = scheme == "https"
        host, port = parts.hostname or "", parts.port or (443 if is_encrypted else 80)
        proxies = urllib.request.getproxies()
        proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
        if not proxy or urllib.request.proxy_bypass(host):
            return cls(host, port, is_encrypted, is_link)
        peer = _parsed_proxy(proxy, is_tunnel=is_encrypted)
        authorization: tuple[tuple[str, str], ...] = ()
        if peer.username:
            secret = f"{unquote(peer.username)}:{unquote(peer.password or '')}".encode()
            authorization = (("Proxy-Authorization", f"Basic {base64.b64encode(secret).decode()}"),)
        tunnel = (host, port) if is_encrypted else None
        peer_port = peer.port or (443 if peer.scheme == "https" else 80)
        encrypted = is_encrypted or peer.scheme == "https"
        return cls(peer.hostname or "", peer_port, encrypted, is_link, tunnel, not is_encrypted, authorization)

    def target(self, url: str) -> str:
        """Return what the request line names."""
        parts = urlsplit(url)
        return url if self.names_url else (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _parsed_proxy(proxy: str, *, is_tunnel: bool) -> SplitResult:
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        schemes = ("http",) if is_tunnel else ("http", "https")  # TLS within TLS is not supported
        why = "" if parts.hostname and parts.scheme in schemes and parts.port != 0 else f"not {' or '.join(schemes)}"
    except ValueError as e:
        why = str(e)
    if why:
        raise Invalid(
            "SETTING_INVALID",
            f"the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names cannot be used: {why}",
            next_step="name an http:// proxy, or the registry's host in NO_PROXY",
        )
    return parts


class _HttpStream(ResponseStream):
    def __init__(
        self, transport: HttpTransport, route: _Route, connection: http.client.HTTPConnection, url: str, seconds: float
    ) -> None:
        connection.response_class = _Response
        self._response = cast(_Response, connection.getresponse())
        self._transport, self._route, self._connection, self._seconds = transport, route, connection, seconds
        self._is_encrypted = isinstance(self._response.reader.socket, ssl.SSLSocket)
        super().__init__(url, self._response.status, self._response.headers)

    def set_deadline(self, until: float) -> None:
        self._response.reader.until = until

    def chunks(self) -> Iterator[memoryview]:
        response, url = self._response, self.head.url
        size = CHUNKED_BYTES if response.length is None else max(1, min(BUFFER_BYTES, response.length))
        buffer = bytearray(size)
        response.reader.guard = ThroughputGuard(url)
        view = memoryview(buffer)
        with _as_transport_error(url, self._seconds):
            if _WAITS and response.length and response.reader.until == math.inf and not self._is_encrypted:
                first = response.read1(size)  # what arrived with the head, or what is next
                yield memoryview(first)
                yield from self._whole_buffers(view)
            response.reader.left_bytes = 2 * size + io.DEFAULT_BUFFER_SIZE
            while count := response.readinto(buffer):
                yield view[:count]
                response.reader.left_bytes = 2 * size + io.DEFAULT_BUFFER_SIZE
        if response.length:
            raise TransportError(f"the response was cut off {response.length} bytes before its end", url, broke=True)

    def _whole_buffers(self, view: memoryview) -> Iterator[memoryview]:
        """Let the kernel fill the whole buffer, so that the interpreter is needed once for it, not for each packet."""
        sock, response = self._response.reader.socket, self._response
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(self._seconds), 0))
        sock.settimeout(None)
        try:
            while response.length:
                count = sock.recv_into(view, min(response.length, len(view)), socket.MSG_WAITALL)
                if not count:
                    return
                response.length -= count
                yield view[:count]
        except BlockingIOError as e:
            raise TimeoutError from e
        finally:
            sock.settimeout(self._seconds)

    def close(self) -> None:
        if not self._response.isclosed() and self._response.length == 0:
            self._response.read()
        if self._response.isclosed() and self._connection.sock is not None:
            self._transport.keep(self._route, self._connection)
        else:
            self._response.close()
            self._connection.close()


def _send(connection: http.client.HTTPConnection, body: Iterable[bytes]) -> bool:
    """Send a body. False if the other side closed the connection meanwhile."""
    sock = connection.sock
    try:
        if isinstance(body, FileRange) and hasattr(os, "sendfile") and not isinstance(sock, ssl.SSLSocket):
            start, end = body.start, body.start + body.length
            while start < end:
                sent = sock.sendfile(body.file, start, min(STEP_BYTES, end - start))
                if not sent:
                    body.raise_truncated()
                start += sent
                body.advance(sent)
        else:
            for piece in body:
                sock.sendall(piece)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def has_data(sock: socket.socket) -> bool:
    """Whether there is data to read. `select` supports no descriptor above 1,023, and engines have thousands."""
    if not hasattr(select, "poll"):  # Windows, whose `select` has no such limit
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _until_deadline(seconds: float) -> float:
    return max(min(seconds, DEADLINE.get() - time.monotonic()), 0.001)


@contextlib.contextmanager
def _as_transport_error(url: str, seconds: float) -> Iterator[None]:
    try:
        yield
    except _TooSlow as e:
        raise TransportError(str(e), url) from e
    except TimeoutError as e:
        raise TransportError(f"no byte moved for {seconds:.0f} seconds", url) from e
    except (OSError, http.client.HTTPException) as e:
        refused = isinstance(e, ConnectionRefusedError)
        raise TransportError(str(e) or type(e).__name__, url, broke=True, refused=refused) from e


class _TooSlow(TimeoutError):
    """A response arrived in time byte by byte, and not as a whole."""

    def __str__(self) -> str:
        return "the response did not arrive as a whole in time"


class _Reader(io.RawIOBase):
    """Reads a socket until a moment. `file` keeps the socket open."""

    def __init__(self, sock: socket.socket, file: io.BufferedReader, until: float) -> None:
        self.socket, self._file, self.until = sock, file, until
        self.guard: ThroughputGuard | None = None
        """Of a body without a deadline."""
        self.left_bytes = sys.maxsize
        """How much may arrive before some of it is content: sizes of chunks and lines behind the last one are not."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.until == math.inf:
            count = self.socket.recv_into(buffer)
            self.left_bytes -= count
            if self.left_bytes < 0:
                raise invalid_response("a response has more lines around its content than content")
            if self.guard is not None:
                self.guard.moved(count)
            return count
        seconds = self.socket.gettimeout() or READ_SECONDS
        remaining = self.until - time.monotonic()
        if remaining <= 0:
            raise _TooSlow
        self.socket.settimeout(min(seconds, remaining))
        try:
            return self.socket.recv_into(buffer)
        except TimeoutError as e:
            if remaining < seconds:
                raise _TooSlow from e
            raise
        finally:
            self.socket.settimeout(seconds)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response that is read by a `_Reader`: single bytes now and then do not keep it alive."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        until = time.monotonic() + (sock.gettimeout() or READ_SECONDS) + RESPONSE_SECONDS
        self.reader = _Reader(sock, self.fp, min(until, DEADLINE.get()))
        self.fp = io.BufferedReader(self.reader)
