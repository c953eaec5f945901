"""`InProcess`: a `Transport` to an ASGI application in this process, for the embedded registry and for tests.

- The application runs in the event loop of an anyio portal, from the first request until `close()`, which lets it
  finish what it does for requests, also after their responses.
- Bodies stream in both directions, and a slow reader blocks the application.
- An exception in the application is logged and looks as over a socket: a 500, or a response that is cut off.
"""

from __future__ import annotations

import contextlib
import email.message
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from concurrent.futures import Future, wait
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

from registry.client.transport import ResponseStream, TransportError

Message = MutableMapping[str, Any]
Application = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

CHUNKS_AHEAD = 8
"""Chunks of a response that the application may produce ahead of the caller."""
STOP_SECONDS = 30.0
"""How long `settle()` waits for the application."""

_LOG = logging.getLogger(__name__)


class InProcess:
    """Requests go to `app` without a socket. Thread-safe; `close()` lets it end what it does."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._running = contextlib.ExitStack()
        self._portal: BlockingPortal | None = None
        self._exchanges: dict[_Exchange, Future[None]] = {}

    def open(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Iterable[bytes], *, seconds: float
    ) -> ResponseStream:
        """Call the application. `seconds`: how long each part of the response may take."""
        lines = list(headers.items())
        names = {name.lower() for name, _ in lines}
        if "host" not in names:
            lines.insert(0, ("Host", urlsplit(url).netloc))
        if isinstance(body, bytes) and (body or method not in ("GET", "HEAD")) and "content-length" not in names:
            lines.append(("Content-Length", str(len(body))))
        with self._lock:
            if self._portal is None:
                self._portal = self._running.enter_context(start_blocking_portal())
            exchange = _Exchange(self._portal, url, body, seconds)
            done = self._exchanges[exchange] = self._portal.start_task_soon(
                exchange.run, self._app, _scope(method, url, lines)
            )
        done.add_done_callback(lambda _: self._exchanges.pop(exchange, None))
        return exchange.response()

    def settle(self, *, completed: bool = False) -> None:
        """Wait until the application has finished the requests so far, for at most `STOP_SECONDS`.

        `completed`: only those whose response is complete; the others may wait for what the caller does next.
        """
        exchanges = list(self._exchanges.items())  # a copy: each removes itself
        wait([done for exchange, done in exchanges if exchange.is_complete or not completed], timeout=STOP_SECONDS)

    def close(self) -> None:
        """Let the application end what it is doing, for at most `STOP_SECONDS`."""
        exchanges = dict(self._exchanges)
        for exchange in exchanges:
            exchange.leave()
        self.settle()
        for done in exchanges.values():
            done.cancel()
        with self._lock:
            self._running.close()
            self._portal = None


class _Exchange:
    """One request and its response: the caller's thread on one side, the event loop on the other."""

    def __init__(self, portal: BlockingPortal, url: str, body: bytes | Iterable[bytes], seconds: float) -> None:
        self._portal, self._url, self._seconds = portal, url, seconds
        self._body = iter([body] if isinstance(body, bytes) else body)
        self._is_streamed = not isinstance(body, bytes)  # else nothing can block
        self._reads = anyio.CapacityLimiter(1)  # apart from the threads that the application waits for
        self._is_sent = False
        self._body_error: Exception | None = None
        self._send_message, self._messages = anyio.create_memory_object_stream[Message](CHUNKS_AHEAD)
        self._gone = anyio.Event()
        self.is_complete = False
        """Whether the application sent the whole response."""

    async def run(self, app: Application, scope: Message) -> None:
        """Let the application respond. In the event loop, as everything with `async`."""
        try:
            await app(scope, self._receive, self._send)
        except Exception:
            if not self._gone.is_set():
                _LOG.exception("%s %s failed inside the application", scope["method"], scope["path"])
        finally:
            self._send_message.close()

    async def _receive(self) -> Message:
        if self._is_sent or self._gone.is_set():
            await self._gone.wait()
            return {"type": "http.disconnect"}
        try:
            chunk = await self._next_of_body()
        except Exception as e:  # the caller's own failure
            self._body_error = e
            self._gone.set()
            return {"type": "http.disconnect"}
        self._is_sent = chunk is None
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    async def _next_of_body(self) -> bytes | None:
        if not self._is_streamed:
            return next(self._body, None)
        return await anyio.to_thread.run_sync(next, self._body, None, limiter=self._reads)

    async def _send(self, message: Message) -> None:
        self.is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)
        try:
            await self._send_message.send(message)
        except anyio.BrokenResourceError:  # the caller has left
            await anyio.lowlevel.checkpoint()  # let the application see the disconnect

    def response(self) -> ResponseStream:
        """Wait for the head of the response."""
        first = self._next()
        if self._body_error is not None:
            raise self._body_error
        if first is None:  # the application failed
            first, self.is_complete = {"status": 500}, True
        headers = email.message.Message()
        for name, value in first.get("headers", ()):
            headers[name.decode("latin-1")] = value.decode("latin-1")
        return _InProcessStream(self, self._url, first["status"], headers)

    def chunks(self) -> Iterator[bytes]:
        """The body of the response. `TransportError`."""
        while message := self._next():
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body", False):
                return  # the application may go on: work in the background follows the response
        if not self.is_complete:
            raise TransportError("the application cut off its response", self._url)

    def _next(self) -> Message | None:
        message = self._portal.start_task_soon(self._next_message)
        try:
            return message.result(self._seconds)
        except BaseException as e:  # it is late, or Ctrl-C
            message.cancel()
            self.leave()
            if isinstance(e, TimeoutError):
                raise TransportError("the application did not respond in time", self._url) from None
            raise

    async def _next_message(self) -> Message | None:
        return await anext(self._messages, None)

    def leave(self) -> None:
        """Stop reading. The application sees a disconnect."""
        if not self._gone.is_set():
            with contextlib.suppress(RuntimeError):  # the portal is closed
                self._portal.call(self._leave)

    async def _leave(self) -> None:
        self._gone.set()
        self._messages.close()


class _InProcessStream(ResponseStream):
    def __init__(self, exchange: _Exchange, url: str, status: int, headers: email.message.Message) -> None:
        super().__init__(url, status, headers)
        self._exchange = exchange

    def chunks(self) -> Iterator[bytes]:
        return self._exchange.chunks()

    def close(self) -> None:
        self._exchange.leave()


def _scope(method: str, url: str, headers: list[tuple[str, str]]) -> dict[str, Any]:
    parts = urlsplit(url)
    path = parts.path or "/"
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
        "scheme": parts.scheme, "path": unquote(path), "raw_path": path.encode("ascii"), "root_path": "",
        "query_string": parts.query.encode("ascii"), "state": {},
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
        "client": ("in-process", 0), "server": (parts.hostname, parts.port),
    }  # fmt: skip
