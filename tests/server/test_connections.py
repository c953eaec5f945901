"""A connection that sends no request, or reads no response, does not hold a server. Over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from registry.api.access import TokenCreate
from registry.client.registry import Registry
from registry.server.local_links import connections
from registry.server.local_links.connections import ConnectionLimits
from tests.cli.test_event_stream import stream
from tests.faults.servers import Server as RegistryServer
from tests.link_server import Run, RunningServer

pytestmark = pytest.mark.security

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNK = bytes(2**20)
CONNECTIONS = 3
SEND_SECONDS = 2.0
"""A limit for heads in which a thread on a busy machine sends one."""


class Server(RunningServer):
    """Responses `ok`; `/wait` does so when the client is gone.

    `/endless` sends a body until the client is gone, which sets `aborted`.
    """

    def __init__(self, root: Path, run: Run = asyncio.run) -> None:
        self.aborted = threading.Event()
        self.handled = 0
        super().__init__(root, application=self, run=run, limits=ConnectionLimits(CONNECTIONS, 10))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.handled += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/endless":
            while self.server.server_state.connections:
                await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
            self.aborted.set()
            return
        while scope["path"] == "/wait" and (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as running:
        yield running


def rest_of(client: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(65536):
            received += data
    return received


@pytest.mark.parametrize(
    ("sent", "response"), [(b"", b""), (b"\r\n", b""), (b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"HTTP/1.1 408 ")]
)
def test_a_head_that_never_ends_closes_the_connection(
    server: Server, monkeypatch: pytest.MonkeyPatch, sent: bytes, response: bytes
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", SEND_SECONDS if response else 0.1)
    with server.connect() as client:
        client.sendall(sent)
        received = rest_of(client)
    assert received.startswith(response)
    assert bool(received) is bool(response)


def test_a_connection_with_line_breaks_between_requests_is_closed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", SEND_SECONDS)
    with server.connect() as client:
        client.sendall(REQUEST)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.settimeout(0.05)
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                client.sendall(b"\r\n")
                with contextlib.suppress(TimeoutError):
                    if not client.recv(65536):
                        return
            pytest.fail("the connection is still open")


def test_an_address_has_a_limit_of_connections(server: Server) -> None:
    with contextlib.ExitStack() as opened:
        clients = [opened.enter_context(server.connect()) for _ in range(CONNECTIONS)]
        for client in clients:
            client.sendall(REQUEST)
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
        with server.connect() as refused:
            assert rest_of(refused) == b""
    received = b""
    while not received:  # the server may not have noticed yet that the others are closed
        with server.connect() as client, contextlib.suppress(ConnectionError):
            client.sendall(REQUEST)
            received = client.recv(65536)
    assert received.startswith(b"HTTP/1.1 200")


def test_a_response_that_is_not_read_is_aborted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.3)
    with server.connect() as client:
        client.sendall(REQUEST.replace(b"/ ", b"/endless ", 1))
        assert client.recv(1000)
        assert server.aborted.wait(60)


def test_addresses_of_one_ipv6_network_count_together() -> None:
    limits = ConnectionLimits(1, 10)
    assert limits.add("2001:db8::1")
    assert not limits.add("2001:db8::2")
    assert limits.add("2001:db8:0:1::1")
    limits.remove("2001:db8::2")
    assert limits.add("2001:db8::3")


def test_clients_with_ipv4_count_by_address_on_a_socket_that_takes_both() -> None:
    limits = ConnectionLimits(1, 10)
    assert limits.add("::ffff:192.0.2.1")
    assert not limits.add("::ffff:192.0.2.1")
    assert limits.add("::ffff:192.0.2.2")
    assert limits.add("fe80::1%eth0")


def test_a_connection_has_a_limit_of_requests_that_wait_for_their_turn(server: Server) -> None:
    many = 10_000
    with server.connect() as client:
        client.sendall(REQUEST * connections.PIPELINED_LIMIT)
        responses = b""
        while responses.count(b"HTTP/1.1 200") < connections.PIPELINED_LIMIT:
            responses += client.recv(65536)
        with contextlib.suppress(ConnectionError):
            client.sendall(REQUEST * many)
        assert rest_of(client).count(b"HTTP/1.1 200") < many
    assert server.handled < many


def test_a_broken_body_gets_a_response(tmp_path: Path) -> None:
    with RunningServer(tmp_path) as server, server.connect() as client:
        client.sendall(REQUEST[:-2] + b"Transfer-Encoding: chunked\r\n\r\nno size\r\n")
        assert rest_of(client).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("second", [b"\0\r\n\r\n", b""])
def test_a_broken_request_or_an_early_end_writes_no_traceback_into_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], second: bytes
) -> None:
    with Server(tmp_path, run=uvloop.run) as server, server.connect() as client:
        client.sendall(REQUEST.replace(b"/ ", b"/wait ", 1))
        assert client.recv(1000).startswith(b"HTTP/1.1 200"), "the first response has begun"
        client.sendall(second)
        client.shutdown(socket.SHUT_WR if second else socket.SHUT_RDWR)
        assert b"HTTP/1.1" not in rest_of(client), "no other response in the middle of this one"
    assert "Traceback" not in capfd.readouterr().err


def test_a_token_has_a_limit_of_streams(registry_server: RegistryServer) -> None:
    url, token = registry_server.url, registry_server.token
    waiting = {"wait": 1, "after": 10_000}
    with Registry(url, token) as registry:
        other = registry.create_token(TokenCreate(name="other", scopes=["pull"])).secret
    with stream(url, token, 0) as messages:
        next(messages)
        headers = {"Authorization": f"Bearer {token}"}
        for path, query in (("events/stream", {}), ("events", waiting)):
            refused = httpx.get(f"{url}/api/v1/{path}", params=query, headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (429, "RATE_LIMITED")
        assert httpx.get(f"{url}/api/v1/events", headers=headers).status_code == 200
        with stream(url, other, 0):
            pass
    waits = (httpx.get(f"{url}/api/v1/events", params=waiting, headers=headers).status_code for _ in range(100))
    assert next(waits, None) in (200, 429)  # the server may not have noticed yet that the stream ended
    assert 200 in waits
    assert next(waits) == 200


@pytest.fixture
def registry_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    data = tmp_path_factory.mktemp("data")
    with RegistryServer({"REGISTRY_DATA": str(data), "REGISTRY_STREAMS_PER_TOKEN": "1"}).running() as running:
        yield running
