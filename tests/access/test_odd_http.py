"""Odd HTTP through a real server: the expected refusal, and the next request on a new connection gets its response.

Cases 88 and 92 to 100 of the list of bad inputs. `adapter serve --json` tells URL and first token: none is a default.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.import_table import ROOT

pytestmark = pytest.mark.security

LISTEN_SECONDS = 60.0
"""A server that says nothing for so long waits for more."""
CLOSED = 0
"""What `Server.status` says when the server closes without a response."""


@dataclass
class Server:
    port: int
    token: str
    folder: Path

    def send(self, data: bytes) -> bytes:
        """Raw bytes in; all bytes out until the server has responded and closes, or waits for more."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as wire:
            wire.settimeout(LISTEN_SECONDS)
            with contextlib.suppress(OSError):  # it may respond and close before the end
                wire.sendall(data)
            received = b""
            with contextlib.suppress(OSError):
                while piece := wire.recv(65536):
                    received += piece
            return received

    def ask(self, method: str, path: str, *headers: str, body: bytes = b"", token: bool = True) -> bytes:
        sent = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", "Connection: close", *headers]
        sent += [f"Authorization: Bearer {self.token}"] if token else []
        framed = any(header.startswith(("Content-Length", "Transfer-Encoding")) for header in headers)
        sent += [f"Content-Length: {len(body)}"] if body and not framed else []
        return self.send("\r\n".join([*sent, "", ""]).encode("latin-1") + body)

    def status(self, response: bytes) -> int:
        return int(response.split(b" ", 2)[1]) if response.startswith(b"HTTP/") else CLOSED


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("wire")
    command = [sys.executable, "-m", "cli.main", "serve", "--port", "0", "--data", str(folder), "--json"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("REGISTRY_")}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        announced = json.loads(process.stdout.readline())
        yield Server(int(announced["url"].rpartition(":")[2]), announced["token"], folder)
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@pytest.fixture(autouse=True)
def _still_responses(server: Server) -> Iterator[None]:
    yield
    assert server.status(server.ask("GET", "/api/v1/whoami")) == 200


WHOAMI = "/api/v1/whoami"


def test_the_first_start_prints_a_new_token_and_requests_need_one(server: Server) -> None:
    assert server.token.startswith("lra_")
    assert len(server.token) == 42
    assert server.status(server.ask("GET", WHOAMI, token=False)) == 401
    assert server.status(server.ask("POST", "/api/v1/namespaces", body=b'{"name":"acme"}', token=False)) == 401


@pytest.mark.parametrize("host", ["127.0.0.1/../api/v1/health?x=", "evil.example.org/api/v1/health", "a b", "x:999999"])
def test_an_invalid_host_header_is_refused(server: Server, host: str) -> None:
    for token in ("", f"Authorization: Bearer {server.token}\r\n"):
        response = server.send(f"GET {WHOAMI} HTTP/1.1\r\nHost: {host}\r\n{token}Connection: close\r\n\r\n".encode())
        assert server.status(response) == 400
    for good in ("registry.example.org", "127.0.0.1:80", "[::1]:8080", "a_b"):
        request = f"GET {WHOAMI} HTTP/1.1\r\nHost: {good}\r\n{token}Connection: close\r\n\r\n".encode()
        assert server.status(server.send(request)) == 200


def test_two_host_headers_are_refused(server: Server) -> None:
    """Two layers could read different ones: a proxy routes by the first, and links are built from the last."""
    for hosts in (("good.example", "evil.example"), ("good.example", "good.example")):
        lines = [f"GET {WHOAMI} HTTP/1.1", *(f"Host: {host}" for host in hosts)]
        lines += [f"Authorization: Bearer {server.token}", "Connection: close"]
        assert server.status(server.send("\r\n".join([*lines, "", ""]).encode())) == 400


def test_ten_thousand_ranges_are_refused(server: Server) -> None:
    ranges = ",".join(f"{n}-{n}" for n in range(10_000))
    response = server.ask("GET", "/api/v1/adapters/a/b/versions/1/files/x", f"Range: bytes={ranges}")
    assert server.status(response) in (400, 404, 416, 431, CLOSED)


def test_two_lengths_or_a_length_with_chunks_are_refused(server: Server) -> None:
    for headers in (("Content-Length: 5", "Transfer-Encoding: chunked"), ("Content-Length: 5", "Content-Length: 6")):
        response = server.ask("POST", "/api/v1/check", *headers, body=b"0\r\n\r\nGET /api/v1/health HTTP/1.1\r\n\r\n")
        assert server.status(response) in (400, CLOSED)
        assert response.count(b"HTTP/1.1") <= 1


def test_a_form_is_not_json_and_a_large_one_is_not_read(server: Server) -> None:
    form = b"&".join(b"a=1" for _ in range(10_000))
    kind = "Content-Type: application/x-www-form-urlencoded"
    assert server.status(server.ask("POST", "/api/v1/namespaces", kind, body=form)) in (400, 413, 415, 422)
    parts = b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n" * 30_000
    kind = "Content-Type: multipart/form-data; boundary=x"
    assert server.status(server.ask("POST", "/api/v1/namespaces", kind, body=parts)) in (400, 413, 415, 422)


def test_an_oversized_url_and_oversized_headers_are_refused(server: Server) -> None:
    """Or the connection ends: who still sends may not hear why."""
    assert server.status(server.ask("GET", "/api/v1/adapters?text=" + "x" * 2**20)) in (400, CLOSED)
    headers = (f"X-{n}: {'y' * 1000}" for n in range(2000))
    assert server.status(server.ask("GET", WHOAMI, *headers)) in (400, CLOSED)
    assert server.status(server.ask("GET", "/api/v1/adapters?text=" + "x" * 70_000)) == 400
    assert server.status(server.ask("GET", WHOAMI, *(f"X-{n}: {'y' * 1000}" for n in range(70)))) == 400


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1" + "0" * 9, "9" * 400])
def test_the_limit_of_a_page_is_checked(server: Server, limit: str) -> None:
    """What is no size is refused; a size that is too large means the largest."""
    allowed = (200,) if limit[1:] and limit.isdigit() else (400, 422)
    assert server.status(server.ask("GET", f"/api/v1/adapters?limit={limit}")) in allowed


def test_cookies_do_not_authenticate_and_other_origins_get_no_cors_headers(server: Server) -> None:
    cookie = (f"Cookie: token={server.token}; session={server.token}", "Origin: https://evil.example.org")
    body = b'{"name":"acme"}'
    assert server.status(server.ask("POST", "/api/v1/namespaces", *cookie, body=body, token=False)) == 401
    headers = ("Origin: https://evil.example.org", "Access-Control-Request-Method: DELETE")
    for response in (server.ask("OPTIONS", "/api/v1/namespaces", *headers), server.ask("GET", WHOAMI, *headers)):
        assert b"access-control-allow" not in response.lower()


def test_a_compressed_body_is_not_decompressed(server: Server) -> None:
    bomb = gzip.compress(b'{"name": "' + b"a" * 50_000_000 + b'"}')
    response = server.ask("POST", "/api/v1/namespaces", "Content-Encoding: gzip", body=bomb)
    assert server.status(response) in (400, 413, 415)


@pytest.mark.parametrize("authorization", ["Bearer", "Bearer ", "bearer x", "Basic YTpi", "lra_", "Bearer \xff\xfe"])
def test_an_invalid_authorization_header_is_401(server: Server, authorization: str) -> None:
    response = server.ask("GET", WHOAMI, f"Authorization: {authorization}", token=False)
    assert server.status(response) in (400, 401, 429)


def test_the_first_secret_is_not_stored(server: Server) -> None:
    files = [path for path in server.folder.rglob("*") if path.is_file() and server.token.encode() in path.read_bytes()]
    assert files == []
