"""Transports of httpx as transports of our client, and the other way round: tests use httpx's classes on both sides.

HttpxTransport     a base class: what implements `handle_request` can be given to our client
MockTransport      httpx's, for our client
HttpxInProcess     `InProcess`, also for `httpx.Client`
"""

from __future__ import annotations

import email.message
import time
from collections.abc import Iterable, Iterator, Mapping

import httpx

from registry.client.transport import ResponseStream, TransportError
from registry.client.transport.in_process import InProcess


class HttpxTransport(httpx.BaseTransport):
    def open(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Iterable[bytes], *, seconds: float
    ) -> ResponseStream:
        timeout = {"timeout": {"read": seconds}}
        request = httpx.Request(method, url, headers=dict(headers), content=body, extensions=timeout)
        try:
            response = self.handle_request(request)
        except httpx.HTTPError as e:
            raise TransportError(str(e), url, broke=isinstance(e, httpx.ConnectError | httpx.ReadError)) from e
        return _HttpxStream(url, response)


class MockTransport(HttpxTransport, httpx.MockTransport):
    pass


class _HttpxStream(ResponseStream):
    def __init__(self, url: str, response: httpx.Response) -> None:
        headers = email.message.Message()
        for name, value in response.headers.multi_items():
            headers[name] = value
        super().__init__(url, response.status_code, headers)
        self._response = response
        self._until = float("inf")

    def set_deadline(self, until: float) -> None:
        self._until = until

    def chunks(self) -> Iterator[bytes]:
        try:
            if hasattr(self._response, "_content"):
                yield self._response.content
                return
            for chunk in self._response.iter_raw():
                if time.monotonic() > self._until:
                    raise TransportError("the response did not arrive as a whole in time", self.head.url)
                yield chunk
        except httpx.HTTPError as e:
            raise TransportError(str(e), self.head.url, broke=isinstance(e, httpx.ReadError)) from e

    def close(self) -> None:
        self._response.close()


class HttpxInProcess(InProcess, httpx.BaseTransport):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        timeout = request.extensions.get("timeout", {}).get("read") or 600
        stream = request.stream
        if not isinstance(stream, httpx.SyncByteStream):
            raise RuntimeError("an asynchronous request body was given to a synchronous transport")
        body = b"".join(stream) if isinstance(stream, httpx.ByteStream) else stream
        lines = request.headers.multi_items()
        try:
            opened = self.open(request.method, str(request.url), Lines(lines), body, seconds=timeout)
        except TransportError as e:
            raise httpx.ReadTimeout(str(e), request=request) from e
        return httpx.Response(
            opened.head.status, headers=list(opened.head.headers.items()), stream=_Stream(opened), request=request
        )


class Lines(dict[str, str]):
    """Headers that may repeat a name, as a request of a test may."""

    def __init__(self, lines: list[tuple[str, str]]) -> None:
        super().__init__(lines)
        self._lines = lines

    def items(self) -> list[tuple[str, str]]:  # type: ignore[override]
        return self._lines


class _Stream(httpx.SyncByteStream):
    def __init__(self, stream: ResponseStream) -> None:
        self._body = stream

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._body.chunks():
                yield bytes(chunk)
        except TransportError as e:
            raise httpx.RemoteProtocolError(str(e)) from e

    def close(self) -> None:
        self._body.close()
