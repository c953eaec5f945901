"""What an identity provider responds is read within one limit of time and one of bytes, whatever it is waiting for."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from registry.errors import Unauthenticated, Unavailable
from registry.server.access import issuers, outgoing
from registry.server.pages.sessions import authorization_code
from registry.server.pages.sessions.attempts import SignInAttempt
from tests.access.identity import ISSUER, Provider

pytestmark = pytest.mark.security
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
PIECE = b" " * 2**16


def in_headers(send: Callable[[bytes], object], pause: Callable[[], object]) -> None:
    send(OK)
    while True:
        send(b"X-A: b\r\n")
        pause()


def in_body(send: Callable[[bytes], object], pause: Callable[[], object]) -> None:
    send(OK + b"\r\n")
    while True:
        send(b" ")
        pause()


def without_end(send: Callable[[bytes], object], _pause: Callable[[], object]) -> None:
    send(OK + b"\r\n")
    while True:
        send(PIECE)


def compressed(send: Callable[[bytes], object], _pause: Callable[[], object]) -> None:
    send(OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b" " * 2**26 + b"{}"))


def redirect(send: Callable[[bytes], object], _pause: Callable[[], object]) -> None:
    send(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 2\r\n\r\n{}")


class RawServer:
    """Responds to each connection with the same function until the client leaves."""

    def __init__(self, respond: Callable[..., object]) -> None:
        self._respond = respond
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent_bytes = self.connections = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                self.connections += 1
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    self._respond(partial(self._send, connection), partial(self._closing.wait, 0.02))
            if self._closing.is_set():
                return

    def _send(self, connection: socket.socket, data: bytes) -> None:
        if self._closing.is_set():
            raise OSError
        connection.sendall(data)
        self.sent_bytes += len(data)

    def close(self) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(30)


@pytest.fixture(params=[in_headers, in_body, without_end, compressed, redirect])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawServer]:
    seconds = 0.5 if request.param in (in_headers, in_body) else 60
    monkeypatch.setattr(issuers, "FETCH_SECONDS", seconds)
    monkeypatch.setattr(authorization_code, "REDEEM_SECONDS", seconds)
    opened = RawServer(request.param)
    yield opened
    opened.close()


def test_the_keys_of_an_issuer_are_read_within_limits(server: RawServer, tmp_path: Path) -> None:
    provider = Provider(tmp_path)
    config = {"issuer": ISSUER, "audience": "a", "jwks_url": f"{server.url}/keys", "algorithms": ["ES256"]}
    with pytest.raises(Unavailable, match="the keys of"):
        issuers.Issuer(config, tmp_path).key_of(provider.sign())
    assert server.connections == 1
    assert server.sent_bytes < 64 * outgoing.DOCUMENT_LIMIT_BYTES, "and what the system buffers"


def test_the_response_to_a_code_is_read_within_limits(server: RawServer, tmp_path: Path) -> None:
    config = {
        "issuer": ISSUER, "audience": "a", "jwks_url": f"{server.url}/keys", "login_claim": "email",
        "sign_in_name": "acme", "client_id": "x", "authorization_url": server.url, "token_url": server.url,
    }  # fmt: skip
    client = issuers.Issuer(config, tmp_path).client
    assert client is not None
    attempt = SignInAttempt.begin("acme", "/", confirms=False)
    with pytest.raises((Unavailable, Unauthenticated)):
        authorization_code.redeem_code(client, attempt, "code", "http://registry.test/")
    assert server.connections == 1
    assert server.sent_bytes < 64 * outgoing.DOCUMENT_LIMIT_BYTES
    assert client.free.acquire(blocking=False), "the place is free again"


def test_a_document_of_the_limit_is_read() -> None:
    document = {"a": " " * (outgoing.DOCUMENT_LIMIT_BYTES - 9)}
    text = json.dumps(document).encode()
    opened = RawServer(lambda send, _: send(OK + f"Content-Length: {len(text)}\r\n\r\n".encode() + text))
    try:
        assert len(text) == outgoing.DOCUMENT_LIMIT_BYTES
        assert outgoing.request_document("GET", opened.url, seconds=60) == (200, document)
    finally:
        opened.close()
