"""Direct I/O of `adapter serve` with the installed version of uvicorn, over real sockets.

A new version of uvicorn may break how its parser is skipped ahead and how its connection continues.
"""

from __future__ import annotations

import asyncio
import gc
import http.client
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from cli.direct_io import _SLOTS, DirectProtocol
from registry.digest import Digest
from registry.server.http import bodies, direct_io
from registry.server.storage.blobs import BlobWriter, Bytes, key_of
from tests.memory_blobs import MemoryBlobs

DATA = random.Random(3).randbytes(5 * 2**20 + 321)
HALF = len(DATA) // 2


class RecordingWriter:
    """A writer that records its threads and when half of the bytes arrived."""

    def __init__(self, inner: BlobWriter) -> None:
        self.inner = inner
        self.threads: set[str] = set()
        self.size_bytes = 0
        self.half = threading.Event()

    def write(self, chunk: Bytes) -> None:
        self.inner.write(chunk)
        self.size_bytes += len(chunk)
        self.threads.add(threading.current_thread().name)
        if self.size_bytes >= HALF - 2**20:
            self.half.set()


class Server:
    """PUT stores a body and returns its digest; GET returns a file, a range of it, or a text."""

    def __init__(self, path: Path, run: Callable[[Any], object]) -> None:
        self.path = path
        self.sinks: list[RecordingWriter] = []
        self.left = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**18)
        self.port = self.listener.getsockname()[1]
        config = uvicorn.Config(self, http=DirectProtocol, log_level="critical", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=lambda: run(self.server.serve([self.listener])))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if scope["method"] == "PUT" and direct_io.direct_io_of(scope) is None:
            answer: Response = PlainTextResponse("no direct I/O", 500)
        elif scope["method"] == "PUT":
            store = MemoryBlobs()
            sink = RecordingWriter(store.open_writer(key_of(Digest.of(DATA)), limit_bytes=len(DATA)))
            self.sinks.append(sink)
            try:
                await bodies.receive_body(request, sink, len(DATA))  # type: ignore[arg-type]
            except ClientDisconnect:
                self.left.set()
                raise
            answer = PlainTextResponse(str(sink.inner.finish().digest))
        elif scope["path"] == "/plain":
            answer = PlainTextResponse("plain")
        else:
            start, length = (1000, len(DATA) - 2000) if scope["path"] == "/range" else (0, len(DATA))
            answer = bodies.FileRangeResponse(self.path, start, length, 200, {})
        await answer(scope, receive, send)


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    (tmp_path / "file").write_bytes(DATA)
    running = Server(tmp_path / "file", request.param)
    running.thread.start()
    yield running
    running.server.should_exit = True
    running.thread.join()
    assert all(_SLOTS.acquire(blocking=False) for _ in range(direct_io.SLOTS)), "a slot was not released"
    for _ in range(direct_io.SLOTS):
        _SLOTS.release()


@pytest.fixture
def connection(server: Server) -> Iterator[http.client.HTTPConnection]:
    created = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    yield created
    created.close()


def head(method: str = "PUT") -> bytes:
    return f"{method} / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(DATA)}\r\n\r\n".encode()


def stored(connection: http.client.HTTPConnection) -> bool:
    connection.request("PUT", "/", DATA)
    return connection.getresponse().read().decode() == Digest.of(DATA)


def fetched(connection: http.client.HTTPConnection, path: str = "/") -> bytes:
    connection.request("GET", path)
    return connection.getresponse().read()


def test_bodies_and_files_arrive_whole_on_one_connection(
    server: Server, connection: http.client.HTTPConnection
) -> None:
    for _ in range(3):
        assert stored(connection)
        assert fetched(connection) == DATA
        assert fetched(connection, "/range") == DATA[1000:-1000]
    assert len(server.sinks) == 3
    assert all(any("AnyIO" in name for name in sink.threads) for sink in server.sinks)


def test_a_paused_upload_continues_in_the_event_loop(
    server: Server, connection: http.client.HTTPConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.direct_io.IDLE_SECONDS", 0.05)
    connection.connect()
    connection.sock.sendall(head() + DATA[:HALF])
    while not server.sinks:
        threading.Event().wait(0.01)
    assert server.sinks[0].half.wait(60)
    while _free_slots() != direct_io.SLOTS:
        threading.Event().wait(0.01)
    connection.sock.sendall(DATA[HALF:])
    answer = http.client.HTTPResponse(connection.sock, method="PUT")
    answer.begin()
    assert answer.read().decode() == Digest.of(DATA)
    assert len(server.sinks[0].threads) == 2
    connection._HTTPConnection__state = "Idle"  # type: ignore[attr-defined]
    assert stored(connection)


def _free_slots() -> int:
    return _SLOTS._value


def test_a_pipelined_request_is_the_next_request(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as client:
        client.sendall(head() + DATA + head() + DATA)
        received = b""
        while received.count(b"sha256:") < 2:
            received += client.recv(65536)
    assert received.count(str(Digest.of(DATA)).encode()) == 2


def test_a_client_that_disconnects_is_noticed(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as client:
        client.sendall(head() + DATA[:HALF])
        while not server.sinks:
            threading.Event().wait(0.01)
        assert server.sinks[0].half.wait(60)
    assert server.left.wait(60)


def test_wrong_bytes_are_refused_and_the_connection_ends(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as client:
        client.sendall(head() + b"x" + DATA[1:])
        received = b""
        while more := client.recv(65536):
            received += more
    assert received.startswith(b"HTTP/1.1 500")


def test_a_slow_reader_gets_everything(connection: http.client.HTTPConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.direct_io.IDLE_SECONDS", 0.02)
    connection.connect()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**18)
    connection.request("GET", "/")
    answer = connection.getresponse()
    received = answer.read(1000)
    while _free_slots() != direct_io.SLOTS:
        threading.Event().wait(0.01)
    threading.Event().wait(0.1)
    assert received + answer.read() == DATA


def test_a_reader_that_disconnects_harms_no_other_request(
    server: Server, connection: http.client.HTTPConnection
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        client.recv(1000)
    assert fetched(connection) == DATA


def test_without_a_free_slot_the_event_loop_moves_the_bytes(
    server: Server, connection: http.client.HTTPConnection
) -> None:
    taken = [_SLOTS.acquire(blocking=False) for _ in range(direct_io.SLOTS)]
    try:
        assert all(taken)
        assert stored(connection)
        assert fetched(connection) == DATA
    finally:
        for _ in taken:
            _SLOTS.release()
    assert len(server.sinks[0].threads) == 1


def test_a_finished_request_leaves_nothing_for_the_garbage_collector(
    connection: http.client.HTTPConnection,
) -> None:
    many = 100
    for count in (10, many):
        gc.collect()
        gc.disable()
        try:
            for _ in range(count):
                connection.request("GET", "/plain")
                connection.getresponse().read()
            left = gc.collect()
        finally:
            gc.enable()
    assert left < many
