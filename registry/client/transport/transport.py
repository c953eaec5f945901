"""`Transport`: sends requests over `Sockets`, or by httpx through a proxy or a given httpx transport.

Both return httpx's responses and raise httpx's exceptions. An httpx client is made on first use, because it is slow.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping

import httpx

from registry.client.transport.sockets import (
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    ERROR_LIMIT_BYTES,
    READ_SECONDS,
    Advance,
    Sockets,
    Take,
    direct,
    too_long,
    truncated,
)
from registry.errors import Invalid
from registry.files import CHUNK_BYTES

TIMEOUT = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
LIMITS = httpx.Limits(max_connections=64, max_keepalive_connections=32)


class Transport:
    """Thread-safe. `transport`: an httpx transport for all requests."""

    def __init__(self, sockets: Sockets, user_agent: str, transport: httpx.BaseTransport | None) -> None:
        self._sockets = sockets
        self._user_agent = user_agent
        self._transport = transport
        self._lock = threading.Lock()
        self._httpx: httpx.Client | None = None

    def close(self) -> None:
        if self._httpx is not None:
            self._httpx.close()
        elif self._transport is not None:
            self._transport.close()

    def ask(
        self, method: str, url: str, content: bytes | None, headers: Mapping[str, str], *, seconds: float,
        limit_bytes: int,
    ) -> httpx.Response:  # fmt: skip
        """A request and its answer, both small enough for memory."""
        if self._by_socket(url):
            return self._sockets.ask(method, url, headers, content or b"", seconds, limit_bytes)
        timeout = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        all_headers = {"Accept-Encoding": "identity", **headers}
        with self._client().stream(method, url, content=content, headers=all_headers, timeout=timeout) as answer:
            return read_whole(answer, limit_bytes, seconds)

    def put_file(
        self, url: str, headers: Mapping[str, str], file: io.FileIO, start: int, length: int, advance: Advance
    ) -> httpx.Response:
        if self._by_socket(url):
            return self._sockets.put(url, headers, file, start, length, advance)
        body = _pieces(file, start, length, advance)
        return self.put("PUT", url, {**headers, "Content-Length": str(length)}, body)

    def put(self, method: str, url: str, headers: Mapping[str, str], body: Iterable[bytes]) -> httpx.Response:
        with self._client().stream(method, url, content=body, headers=headers) as answer:
            return read_whole(answer)

    def get(self, url: str, headers: Mapping[str, str], take: Take) -> httpx.Response:
        """Give the body of a 200 or 206 to `take` piece by piece; any other is in the answer."""
        if self._by_socket(url):
            return self._sockets.get(url, headers, take)
        return _take_all(self._client(), url, headers, take)

    def open(self, url: str, headers: Mapping[str, str]) -> httpx.Response:
        """The answer to a GET, its body still to be read."""
        client = self._client()
        return client.send(client.build_request("GET", url, headers=headers), stream=True)

    def _by_socket(self, url: str) -> bool:
        return self._transport is None and direct(url)

    def _client(self) -> httpx.Client:
        with self._lock:
            if self._httpx is None:
                headers, tls = {"User-Agent": self._user_agent}, self._sockets.tls()
                try:
                    self._httpx = httpx.Client(
                        transport=self._transport, timeout=TIMEOUT, limits=LIMITS, headers=headers, verify=tls
                    )
                except (ImportError, ValueError, httpx.InvalidURL) as e:
                    raise Invalid(
                        "SETTING_INVALID",
                        f"the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names cannot be used: {e}",
                        next_step="name an http:// or https:// proxy, or the registry's host in NO_PROXY",
                    ) from e
            return self._httpx


def _pieces(file: io.FileIO, start: int, length: int, advance: Advance) -> Iterator[bytes]:
    while length:
        piece = os.pread(file.fileno(), min(CHUNK_BYTES, length), start)
        if not piece:
            raise truncated(file)
        yield piece
        start, length = start + len(piece), length - len(piece)
        advance(len(piece))


def _take_all(client: httpx.Client, target: str, headers: Mapping[str, str], take: Take) -> httpx.Response:
    sent = {"Accept-Encoding": "identity", **headers}
    with client.stream("GET", target, headers=sent) as answer:
        if answer.status_code not in (200, 206):
            return read_whole(answer)
        if (answer.status_code == 206) != ("Range" in headers):
            raise httpx.RemoteProtocolError("the answer is not the requested range", request=answer.request)
        for piece in answer.iter_bytes():
            take(memoryview(piece))
        return answer


def read_whole(
    answer: httpx.Response, limit_bytes: int = ERROR_LIMIT_BYTES, seconds: float = READ_SECONDS
) -> httpx.Response:
    """The answer with its body. `Corrupt` (ANSWER_INVALID) over the limit."""
    until, body = time.monotonic() + seconds + ANSWER_SECONDS, bytearray()
    for piece in answer.iter_bytes():
        body += piece
        if len(body) > limit_bytes:
            raise too_long(answer.request, limit_bytes)
        if time.monotonic() > until:
            raise httpx.ReadTimeout("the answer did not arrive as a whole in time", request=answer.request)
    skipped = ("content-length", "transfer-encoding", "content-encoding")
    headers = [(name, value) for name, value in answer.headers.multi_items() if name.lower() not in skipped]
    return httpx.Response(answer.status_code, headers=headers, content=bytes(body), request=answer.request)
