"""Broken connections harm no server, and the streams of a token have a limit. Over real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from registry.api.access import TokenCreate
from registry.client.registry import Registry
from tests.cli.test_event_stream import stream
from tests.faults.servers import Server as RegistryServer
from tests.link_server import RunningServer, rest_of, running

pytestmark = pytest.mark.security

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with running(_respond) as running_server:
        yield running_server


async def _respond(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond `ok`; to `/wait` once the client is gone."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while scope["path"] == "/wait" and (await receive())["type"] != "http.disconnect":
        pass
    await send({"type": "http.response.body", "body": b"ok"})


def test_a_broken_body_gets_a_response(server: RunningServer) -> None:
    with server.connect() as client:
        client.sendall(REQUEST[:-2] + b"Transfer-Encoding: chunked\r\n\r\nno size\r\n")
        assert rest_of(client).startswith(b"HTTP/1.1 ")


def test_a_client_that_leaves_early_writes_no_traceback_into_the_log(
    server: RunningServer, capfd: pytest.CaptureFixture[str]
) -> None:
    with server.connect() as client:
        client.sendall(REQUEST.replace(b"/ ", b"/wait ", 1))
        assert client.recv(1000).startswith(b"HTTP/1.1 200"), "the first response has begun"
        client.shutdown(socket.SHUT_RDWR)
    server.stop()
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
