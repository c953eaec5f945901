"""`InProcess`: an httpx transport to an ASGI application in this process, for the embedded registry and for tests.

- The application runs in an event loop in its own thread. Its lifespan begins before the first request and ends with
  `close()`, which lets it finish what it does for requests, also after their answers.
- Bodies stream in both directions, and a slow reader blocks the application.
- An exception in the application is logged and looks as over a socket: a 500, or an answer that breaks off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import httpx

Message = MutableMapping[str, Any]
Application = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

CHUNKS_AHEAD = 8
"""Chunks of an answer that the application may produce ahead of the caller."""
STOP_SECONDS = 30.0
"""How long `close()` waits for the application."""

_ASGI = {"version": "3.0", "spec_version": "2.3"}
_LOG = logging.getLogger(__name__)


class InProcess(httpx.BaseTransport):
    """Requests go to `app` without a socket. Thread-safe; `close()` runs the application's shutdown."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            if self._running is None:
                self._running = _Running.start(self._app)
            running = self._running
        exchange = _Exchange(self._app, request, running)
        return exchange.answer()

    def settle(self) -> None:
        """Wait until the application has finished the requests so far, for at most `STOP_SECONDS`."""
        with self._lock:
            running = self._running
        if running is not None:
            running.settle()

    def close(self) -> None:
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
            answer = asyncio.ensure_future(outgoing.get())
            await asyncio.wait([task, answer], return_when=asyncio.FIRST_COMPLETED)
            failed = answer.done() and answer.result()["type"] == f"lifespan.{event}.failed"
            if not answer.done():
                answer.cancel()
            if failed or task.done():
                await task  # raises what the application raised

        await step("startup")
        if not task.done():
            self._stop_lifespan = lambda: step("shutdown")


async def _as_coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable


_END = object()


class _Exchange:
    """One request and its answer: the caller's thread on one side, the event loop on the other."""

    def __init__(self, app: Application, request: httpx.Request, running: _Running) -> None:
        self._app, self._request, self._running = app, request, running
        timeout = request.extensions.get("timeout", {})
        self._read_seconds: float | None = timeout.get("read")
        self._out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._capacity = asyncio.Semaphore(CHUNKS_AHEAD)
        self._gone = asyncio.Event()
        self._body: Iterator[bytes] | None = None
        self._body_ended = False
        self._body_error: Exception | None = None
        self._ended = False

    def answer(self) -> httpx.Response:
        self._running.begin(self)
        first = self._next()
        if self._body_error is not None:
            raise self._body_error
        if first is _END:
            return httpx.Response(500, text="the application ended without an answer", request=self._request)
        return httpx.Response(
            first["status"], headers=first.get("headers", []), stream=_Answer(self), request=self._request
        )

    # ---------------------------------------------------------------- on the caller's thread
    def _next(self) -> Any:
        try:
            return self._out.get(timeout=self._read_seconds)
        except queue.Empty:
            self.leave()
            raise httpx.ReadTimeout("the application did not answer in time", request=self._request) from None

    def chunks(self) -> Iterator[bytes]:
        while (message := self._next()) is not _END:
            self._call(self._capacity.release)
            if message.get("body"):
                yield message["body"]
        if not self._ended:
            raise httpx.RemoteProtocolError("the application broke off its answer", request=self._request)

    def leave(self) -> None:
        """Stop reading. The application sees a disconnect."""
        self._call(self._gone.set)
        self._call(self._capacity.release)

    def _call(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._running.loop.call_soon_threadsafe(function)

    # ---------------------------------------------------------------- on the event loop
    async def run(self) -> None:
        try:
            await self._app(_scope(self._request, self._running.state), self._receive, self._send)
        except Exception:
            if not self._gone.is_set():
                _LOG.exception("%s %s failed inside the application", self._request.method, self._request.url.path)
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
        stream = self._request.stream
        if self._body is None:
            if not isinstance(stream, httpx.SyncByteStream):
                raise RuntimeError("an asynchronous request body was given to a synchronous transport")
            self._body = iter(stream)
        if isinstance(stream, httpx.ByteStream):  # bytes in memory: nothing can block
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


class _Answer(httpx.SyncByteStream):
    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    def __iter__(self) -> Iterator[bytes]:
        return self._exchange.chunks()

    def close(self) -> None:
        self._exchange.leave()


def _scope(request: httpx.Request, state: dict[str, Any]) -> dict[str, Any]:
    url = request.url
    raw_path, _, query = url.raw_path.partition(b"?")
    return {
        "type": "http", "asgi": _ASGI, "http_version": "1.1", "method": request.method, "scheme": url.scheme,
        "path": url.path, "raw_path": raw_path, "query_string": query, "root_path": "",
        "headers": [(key.lower(), value) for key, value in request.headers.raw], "client": ("in-process", 0),
        "server": (url.host, url.port), "state": dict(state),
    }  # fmt: skip
