"""`InProcess`: a `Transport` to an ASGI application in this process, for the embedded registry and for tests.

- The application runs in an event loop in its own thread. Its lifespan begins before the first request and ends with
  `close()`, which lets it finish what it does for requests, also after their responses.
- Bodies stream in both directions, and a slow reader blocks the application.
- An exception in the application is logged and looks as over a socket: a 500, or a response that is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.message
import logging
import queue
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import unquote, urlsplit

from registry.client.transport import ResponseStream, TransportError

Message = MutableMapping[str, Any]
Application = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

CHUNKS_AHEAD = 8
"""Chunks of a response that the application may produce ahead of the caller."""
STOP_SECONDS = 30.0
"""How long `close()` waits for the application."""

_ASGI = {"version": "3.0", "spec_version": "2.3"}
_LOG = logging.getLogger(__name__)


class InProcess:
    """Requests go to `app` without a socket. Thread-safe; `close()` runs the application's shutdown."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def open(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Iterable[bytes], *, seconds: float
    ) -> ResponseStream:
        """Call the application. `seconds`: how long each part of the response may take."""
        with self._lock:
            if self._running is None:
                self._running = _Running.start(self._app)
            running = self._running
        lines = list(headers.items())
        names = {name.lower() for name, _ in lines}
        if "host" not in names:
            lines.insert(0, ("Host", urlsplit(url).netloc))
        if isinstance(body, bytes) and (body or method not in ("GET", "HEAD")) and "content-length" not in names:
            lines.append(("Content-Length", str(len(body))))
        exchange = _Exchange(self._app, _scope(method, url, lines, running.state), body, url, running, seconds)
        return exchange.start()

    def settle(self) -> None:
        """Wait until the application has finished the requests so far, for at most `STOP_SECONDS`."""
        with self._lock:
            running = self._running
        if running is not None:
            running.settle()

    def close(self) -> None:
        """Let the application end what it is doing, and end its lifespan."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            running.stop()


class _Running:
    """The event loop, its thread, the pool that reads request bodies, and the application's lifespan."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.pool = ThreadPoolExecutor(max_workers=32, thread_name_prefix="request-body")
        self._thread = threading.Thread(target=self.loop.run_forever, name="in-process application", daemon=True)
        self._stop_lifespan: Callable[[], Awaitable[None]] | None = None
        self.state: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._exchanges: dict[_Exchange, Future[None]] = {}

    @classmethod
    def start(cls, app: Application) -> _Running:
        running = cls()
        running._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(running._begin_lifespan(app), running.loop).result()
        except BaseException:
            running.stop()
            raise
        return running

    def begin(self, exchange: _Exchange) -> None:
        with self._lock:
            begun = asyncio.run_coroutine_threadsafe(exchange.run(), self.loop)
            self._exchanges[exchange] = begun
        begun.add_done_callback(lambda _: self._exchanges.pop(exchange, None))

    def settle(self) -> None:
        with self._lock:
            exchanges = list(self._exchanges.values())
        wait(exchanges, timeout=STOP_SECONDS)

    def stop(self) -> None:
        with self._lock:
            exchanges = dict(self._exchanges)
        for exchange in exchanges:
            exchange.leave()
        wait(exchanges.values(), timeout=STOP_SECONDS)
        if self._stop_lifespan is not None:
            asyncio.run_coroutine_threadsafe(_as_coroutine(self._stop_lifespan()), self.loop).result()
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.loop.close()

    async def _cancel_all(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.loop.shutdown_asyncgens()

    async def _begin_lifespan(self, app: Application) -> None:
        incoming: asyncio.Queue[Message] = asyncio.Queue()
        outgoing: asyncio.Queue[Message] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": _ASGI, "state": self.state}
        task = asyncio.ensure_future(app(scope, incoming.get, outgoing.put))

        async def step(event: str) -> None:
            await incoming.put({"type": f"lifespan.{event}"})
            response = asyncio.ensure_future(outgoing.get())
            await asyncio.wait([task, response], return_when=asyncio.FIRST_COMPLETED)
            failed = response.done() and response.result()["type"] == f"lifespan.{event}.failed"
            if not response.done():
                response.cancel()
            if failed or task.done():
                await task  # raises what the application raised

        await step("startup")
        if not task.done():
            self._stop_lifespan = lambda: step("shutdown")


async def _as_coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable


_END = object()


class _Exchange:
    """One request and its response: the caller's thread on one side, the event loop on the other."""

    def __init__(
        self, app: Application, scope: dict[str, Any], body: bytes | Iterable[bytes], url: str, running: _Running,
        seconds: float,
    ) -> None:  # fmt: skip
        self._app, self._scope, self._url, self._running = app, scope, url, running
        self._read_seconds = seconds
        self._out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._capacity = asyncio.Semaphore(CHUNKS_AHEAD)
        self._gone = asyncio.Event()
        self._is_streamed = not isinstance(body, bytes)  # else nothing can block
        self._body = iter([body] if isinstance(body, bytes) else body)
        self._body_ended = False
        self._body_error: Exception | None = None
        self._ended = False

    def start(self) -> ResponseStream:
        """Begin, and wait for the head of the response."""
        self._running.begin(self)
        first = self._next()
        if self._body_error is not None:
            raise self._body_error
        if first is _END:
            first = {"status": 500}
            self._out.put(_END)
            self._ended = True
        headers = email.message.Message()
        for name, value in first.get("headers", ()):
            headers[name.decode("latin-1")] = value.decode("latin-1")
        return _InProcessStream(self, self._url, first["status"], headers)

    def _next(self) -> Any:
        try:
            return self._out.get(timeout=self._read_seconds)
        except queue.Empty:
            self.leave()
            raise TransportError("the application did not respond in time", self._url) from None

    def chunks(self) -> Iterator[bytes]:
        while (message := self._next()) is not _END:
            self._call(self._capacity.release)
            if message.get("body"):
                yield message["body"]
        if not self._ended:
            raise TransportError("the application cut off its response", self._url)

    def leave(self) -> None:
        """Stop reading. The application sees a disconnect."""
        self._call(self._gone.set)
        self._call(self._capacity.release)

    def _call(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._running.loop.call_soon_threadsafe(function)

    async def run(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        except Exception:
            if not self._gone.is_set():
                _LOG.exception("%s %s failed inside the application", self._scope["method"], self._scope["path"])
        finally:
            self._out.put(_END)

    async def _receive(self) -> Message:
        if self._body_ended or self._gone.is_set():
            await self._gone.wait()
            return {"type": "http.disconnect"}
        try:
            chunk = await self._next_of_body()
        except Exception as e:  # the caller's own failure
            self._body_error = e
            self._gone.set()
            return {"type": "http.disconnect"}
        self._body_ended = chunk is None
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    async def _next_of_body(self) -> bytes | None:
        if not self._is_streamed:
            return next(self._body, None)
        return await self._running.loop.run_in_executor(self._running.pool, next, self._body, None)

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._out.put(message)
        elif message["type"] == "http.response.body" and not self._ended:
            self._ended = not message.get("more_body", False)
            if self._gone.is_set():
                await asyncio.sleep(0)  # let the application see the disconnect
                return
            if message.get("body"):
                await self._capacity.acquire()
                self._out.put(message)
            if self._ended:
                self._out.put(_END)


class _InProcessStream(ResponseStream):
    def __init__(self, exchange: _Exchange, url: str, status: int, headers: email.message.Message) -> None:
        super().__init__(url, status, headers)
        self._exchange = exchange

    def chunks(self) -> Iterator[bytes]:
        return self._exchange.chunks()

    def close(self) -> None:
        self._exchange.leave()


def _scope(method: str, url: str, headers: list[tuple[str, str]], state: dict[str, Any]) -> dict[str, Any]:
    parts = urlsplit(url)
    path = parts.path or "/"
    return {
        "type": "http", "asgi": _ASGI, "http_version": "1.1", "method": method, "scheme": parts.scheme,
        "path": unquote(path), "raw_path": path.encode("ascii"), "query_string": parts.query.encode("ascii"),
        "root_path": "", "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
        "client": ("in-process", 0), "server": (parts.hostname, parts.port), "state": dict(state),
    }  # fmt: skip
