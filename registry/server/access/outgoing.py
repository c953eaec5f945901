"""Requests that this server sends to others: small JSON documents, such as keys of an identity provider, and deadlines.

- A deadline is one for a whole response, whatever is being waited for: TLS, headers or the body. A read timeout begins
  again at each byte, so a server that sends one now and then would hold a thread without end.
"""

import contextlib
import http.client
import json
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

DOCUMENT_LIMIT_BYTES = 2**20


def request_document(
    method: str, url: str, *, seconds: float, headers: Mapping[str, str] | None = None,
    form: Mapping[str, str] | None = None,
) -> tuple[int, Any]:  # fmt: skip
    """The status and the JSON document of a response. `ValueError` if there is none in time, or a large one.

    For the URLs of the operator's file, through the proxies that the environment names. Redirects are not followed,
    and nothing is decompressed.
    """
    headers = {"Accept": "application/json", **(headers or {}), "Accept-Encoding": "identity"}
    body = None
    if form is not None:
        body, headers["Content-Type"] = urlencode(form), "application/x-www-form-urlencoded"
    try:
        with shut_down_after(seconds) as watch, _manager(url) as manager:
            manager.pool_classes_by_scheme = _watched_pools(watch)
            response = manager.urlopen(
                method, url, body=body, headers=headers, timeout=seconds, retries=False, redirect=False,
                preload_content=False, decode_content=False,
            )  # fmt: skip
            data = response.read(DOCUMENT_LIMIT_BYTES + 1)
            if len(data) > DOCUMENT_LIMIT_BYTES:
                raise ValueError(f"the response of {url} is over {DOCUMENT_LIMIT_BYTES} bytes")
            return response.status, json.loads(data)
    except (HTTPError, http.client.HTTPException, OSError, RecursionError) as e:
        raise ValueError(f"{url} does not respond with a document: {type(e).__name__}") from e


def _manager(url: str) -> urllib3.PoolManager:
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
    tls = ssl.create_default_context()
    if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
        return urllib3.PoolManager(ssl_context=tls)
    location = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    headers = {}
    if location.username:
        secret = f"{unquote(location.username)}:{unquote(location.password or '')}"
        headers = urllib3.make_headers(proxy_basic_auth=secret)
    return urllib3.ProxyManager(location.geturl(), proxy_headers=headers, ssl_context=tls, proxy_ssl_context=tls)


def _watched_pools(watch: Callable[[socket.socket], None]) -> dict[str, type[HTTPConnectionPool]]:
    """Pools that give each socket to `watch` as soon as it is connected, before TLS begins on it."""

    class PlainConnection(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            connected = super()._new_conn()
            watch(connected)
            return connected

    class EncryptedConnection(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            connected = super()._new_conn()
            watch(connected)
            return connected

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = PlainConnection

    class EncryptedPool(HTTPSConnectionPool):
        ConnectionCls = EncryptedConnection

    return {"http": PlainPool, "https": EncryptedPool}


@contextmanager
def shut_down_after(seconds: float) -> Iterator[Callable[[socket.socket], None]]:
    """Yield a function that takes each connection of a request. After so many seconds they are shut down."""
    connections: list[socket.socket] = []
    lock, is_over = threading.Lock(), False

    def watch(connection: socket.socket) -> None:
        with lock:
            connections.append(connection.dup())  # TLS takes the original over
        if is_over:
            shut_down()

    def shut_down() -> None:
        nonlocal is_over
        with lock:
            is_over = True
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield watch
    finally:
        timer.cancel()
        with lock:
            for connection in connections:
                connection.close()
