"""`HttpTransport`: sends a request and reads its response, by urllib3.

- urllib3 keeps connections, speaks to proxies and reads chunks. What it does not have is a limit for a whole response,
  however slowly its bytes arrive: `_Deadline` shuts the socket down.
- No token is added here, no redirect is followed, and nothing is sent again.
"""

from __future__ import annotations

import contextlib
import email.message
import functools
import http.client
import math
import os
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, IncompleteRead, LocationParseError, NewConnectionError, ProxySchemeUnknown
from urllib3.exceptions import TimeoutError as PauseError

from registry.client.transport import (
    BUFFER_BYTES,
    DEADLINE,
    READ_SECONDS,
    ResponseStream,
    TransportError,
)
from registry.errors import Invalid

CONNECT_SECONDS = 10.0
IDLE_LIMIT = 64
"""Connections to one origin that are kept."""
RESPONSE_SECONDS = 120.0
"""A response must be there this long after the time that the other side may think, however it arrives."""

CheckPeer = Callable[[str, str], None]


class HttpTransport:
    """A `Transport` over sockets, through the proxies that the environment names, unless `is_direct`.

    `check_peer` is called with a URL and the address that a direct connection for it has; it raises what forbids it.
    """

    def __init__(
        self, user_agent: str, check_peer: CheckPeer = lambda _url, _address: None, *, is_direct: bool = False
    ) -> None:
        self._user_agent = user_agent
        self._is_direct = is_direct
        self._pool_classes = _pool_classes(check_peer)
        self._tls = functools.cache(_tls_context)
        self._manager = functools.lru_cache(maxsize=64)(self._manager_of)
        """The environment is read once for each origin."""

    def close(self) -> None:
        """Close idle connections. A later request opens new ones."""
        self._manager.cache_clear()

    def open(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Iterable[bytes], *, seconds: float
    ) -> ResponseStream:
        """Send a request on an idle or a new connection."""
        parts = urlsplit(url)
        manager = self._manager(parts.scheme, parts.hostname or "")
        seconds = _until_deadline(seconds)
        lines = {"User-Agent": self._user_agent, "Accept-Encoding": "identity", **headers}
        timeout = urllib3.Timeout(connect=_until_deadline(CONNECT_SECONDS), read=seconds)
        with _as_transport_error(url, seconds):
            response = manager.urlopen(
                method, url, body=body or None, headers=lines, timeout=timeout, retries=False, redirect=False,
                preload_content=False, decode_content=False,
            )  # fmt: skip
        return _HttpStream(response, url, seconds)

    def _manager_of(self, scheme: str, host: str) -> urllib3.PoolManager:
        proxies = urllib.request.getproxies()
        proxy = proxies.get(scheme) or proxies.get("all") or ""
        options: dict[str, Any] = {"maxsize": IDLE_LIMIT}
        if scheme == "https":
            options["ssl_context"] = self._tls()
        if self._is_direct or not proxy or urllib.request.proxy_bypass(host):
            manager = urllib3.PoolManager(**options)
        else:
            manager = _proxy_manager(proxy, options, self._tls)
        manager.pool_classes_by_scheme = self._pool_classes
        return manager


def _proxy_manager(proxy: str, options: dict[str, Any], tls: Callable[[], ssl.SSLContext]) -> urllib3.ProxyManager:
    """A manager of connections through a proxy. `Invalid` (SETTING_INVALID) for a wrong one."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
        if not parts.hostname or parts.port == 0:
            raise ValueError("it names no host")
        if parts.scheme == "https":
            options = {**options, "proxy_ssl_context": tls()}
        location = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        authorization = urllib3.make_headers(basic_auth=secret).get("authorization", "")
        headers = {"Proxy-Authorization": authorization} if authorization else None
        return urllib3.ProxyManager(location, proxy_headers=headers, **options)
    except (ValueError, LocationParseError, ProxySchemeUnknown) as e:
        raise Invalid(
            "SETTING_INVALID",
            f"the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names cannot be used: {e}",
            next_step="name an http:// or https:// proxy, or the registry's host in NO_PROXY",
        ) from e


def _tls_context() -> ssl.SSLContext:
    """`Invalid` (SETTING_INVALID) if the files of certificates cannot be read."""
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    try:
        return ssl.create_default_context(cafile=file or None, capath=folder or None)
    except OSError as e:
        why = f"{file or folder!r} (SSL_CERT_FILE, SSL_CERT_DIR) cannot be read: {e.strerror or e}"
        raise Invalid("SETTING_INVALID", f"the certificates in {why}") from e


def _pool_classes(check_peer: CheckPeer) -> dict[str, type[HTTPConnectionPool]]:
    """Pools whose connections are checked before anything is sent on them, and whose responses begin in time."""

    class PlainConnection(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            _check(self, "http", check_peer)

        def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
            with _limited_head(self):
                return super().getresponse()

    class EncryptedConnection(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            _check(self, "https", check_peer)

        def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
            with _limited_head(self):
                return super().getresponse()

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = PlainConnection

    class EncryptedPool(HTTPSConnectionPool):
        ConnectionCls = EncryptedConnection

    return {"http": PlainPool, "https": EncryptedPool}


def _check(connection: HTTPConnection, scheme: str, check_peer: CheckPeer) -> None:
    if connection.proxy is None:  # a proxy connects by its own rules
        host = f"[{connection.host}]" if ":" in connection.host else connection.host
        check_peer(f"{scheme}://{host}:{connection.port}", str(connection.sock.getpeername()[0]))


@contextlib.contextmanager
def _limited_head(connection: HTTPConnection) -> Iterator[None]:
    sock = connection.sock
    deadline = _Deadline(_response_until(connection.timeout or READ_SECONDS), lambda: sock.shutdown(socket.SHUT_RDWR))
    try:
        yield
    finally:
        deadline.cancel()
        if deadline.passed:  # whatever was made of the part that arrived
            raise _TooSlow


class _Deadline:
    """Calls `end` in another thread at a moment, which may be put off. `passed`: it was called."""

    def __init__(self, until: float, end: Callable[[], None]) -> None:
        self.until, self._end, self.passed = until, end, False
        self._cancelled = threading.Event()
        threading.Thread(target=self._run, name="deadline of a response", daemon=True).start()

    def _run(self) -> None:
        while (seconds := self.until - time.monotonic()) > 0:
            if self._cancelled.wait(min(seconds, threading.TIMEOUT_MAX)):
                return
        self.passed = True
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # it is closed already
            self._end()

    def cancel(self) -> None:
        self._cancelled.set()


class _TooSlow(TimeoutError):
    def __str__(self) -> str:
        return "the response did not arrive as a whole in time"


class _HttpStream(ResponseStream):
    def __init__(self, response: urllib3.BaseHTTPResponse, url: str, seconds: float) -> None:
        headers = email.message.Message()
        for name, value in response.headers.iteritems():
            headers[name] = value
        super().__init__(url, response.status, headers)
        self._response, self._seconds = response, seconds
        self._deadline: _Deadline | None = None
        self._until = _response_until(seconds)

    def set_deadline(self, until: float) -> None:
        self._until = until

    def chunks(self) -> Iterator[bytes]:
        whole = self._until < math.inf
        with _as_transport_error(self.head.url, self._seconds):
            self._deadline = _Deadline(self._until if whole else self._silent_until(), self._response.shutdown)
            try:
                while piece := self._response.read1(BUFFER_BYTES):
                    self._raise_if_late()
                    yield piece
                    if not whole:
                        self._deadline.until = self._silent_until()
            except (OSError, http.client.HTTPException, HTTPError, ValueError, AttributeError):
                self._raise_if_late()
                raise
            self._raise_if_late()

    def _silent_until(self) -> float:
        """When a body without a deadline ends if it brings nothing, though what is around its chunks may move."""
        return time.monotonic() + 2 * self._seconds

    def _raise_if_late(self) -> None:
        if self._deadline is not None and self._deadline.passed:
            raise _TooSlow

    def close(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._response.close()
        self._response.release_conn()


def _response_until(seconds: float) -> float:
    return min(time.monotonic() + seconds + RESPONSE_SECONDS, DEADLINE.get())


def _until_deadline(seconds: float) -> float:
    return max(min(seconds, DEADLINE.get() - time.monotonic()), 0.001)


@contextlib.contextmanager
def _as_transport_error(url: str, seconds: float) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException, HTTPError) as e:
        cause = _cause(e)
        if isinstance(cause, _TooSlow):
            raise TransportError(str(cause), url) from e
        if isinstance(cause, TimeoutError | PauseError):
            raise TransportError(f"no byte moved for {seconds:.0f} seconds", url) from e
        if isinstance(cause, IncompleteRead):
            missing = "" if cause.expected is None else f" {cause.expected} bytes before its end"
            raise TransportError(f"the response was cut off{missing}", url, broke=True) from e
        raise TransportError(str(cause) or type(cause).__name__, url, broke=True) from e


def _cause(error: BaseException) -> BaseException:
    """What urllib3 wrapped: an error of the system, of TLS or of the protocol."""
    if isinstance(error, IncompleteRead):
        return error
    if isinstance(error, PauseError) and not isinstance(error, NewConnectionError):
        return error.__cause__ if isinstance(error.__cause__, _TooSlow) else error
    for inner in (error.__cause__, *error.args):
        if isinstance(inner, OSError | http.client.HTTPException | HTTPError):
            return _cause(inner)
    return error
