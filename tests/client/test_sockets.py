"""Files over real sockets: connections are reused, what breaks goes on, and the token never leaves home."""

from __future__ import annotations

import contextlib
import email.message
import errno
import http.server
import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.api.catalog import FileLink
from registry.client.local.cache import Cache
from registry.client.registry import Registry
from registry.client.transfer.file_transfer import Silent, fetch
from registry.client.transport import HttpResponse
from registry.client.transport.connection import Connection
from registry.client.transport.responses import store_error_of
from registry.digest import Digest
from registry.errors import Corrupt, Invalid, Unavailable
from registry.evaluation.reports import Report
from registry.evaluation.verdicts import Check

DATA = random.Random(11).randbytes(3 * 2**20 + 7)
TOKEN = "lra_secret"


class Origin(http.server.ThreadingHTTPServer):
    """A server of one file that does what `tricks` says for the next requests, then what it should."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.connections = 0
        self.tricks: list[Any] = []
        self.received = b""
        self.data = DATA
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Origin

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _seen(self) -> Any:
        self.server.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        return self.server.tricks.pop(0) if self.server.tricks else None

    def do_PUT(self) -> None:
        trick = self._seen()
        size = int(self.headers["content-length"])
        if trick == "refuse":
            self._respond(403, b"<Error><Code>AccessDenied</Code></Error>", close=True)
            return
        self.server.received = self.rfile.read(size // 2 if trick == "hang up" else size)
        if trick == "hang up":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif isinstance(trick, int):
            self._respond(trick, b"")
        else:
            self._respond(200, b"")

    def do_GET(self) -> None:
        trick = self._seen()
        if isinstance(trick, str) and trick.startswith("http"):
            self.send_response(307)
            self.send_header("Location", trick)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first, last = 0, len(self.server.data) - 1
        range_header = self.headers.get("range")
        if range_header:
            first, last = (int(n) for n in range_header.removeprefix("bytes=").split("-"))
        body = self.server.data[first : last + 1]
        self.send_response(206 if range_header and trick != "no ranges" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if trick == "cut" else body)
        if trick in ("cut", "goodbye"):
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def _respond(self, status: int, body: bytes, close: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if close:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def home() -> Iterator[Origin]:
    with Origin() as origin:
        yield origin
        origin.shutdown()


@pytest.fixture
def store() -> Iterator[Origin]:
    with Origin() as origin:
        yield origin
        origin.shutdown()


@pytest.fixture
def registry(home: Origin, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Registry(home.url, connection=Connection(home.url, TOKEN, wait=lambda _: None)) as registry:
        yield registry


def link(url: str, data: bytes = DATA) -> FileLink:
    return FileLink(path="w.safetensors", media_type="x/y", digest=Digest.of(data), size_bytes=len(data), url=url)


def put(registry: Registry, url: str, source: Path, steps: list[int] | None = None) -> HttpResponse:
    source.write_bytes(DATA)
    progress = steps if steps is not None else []
    with open(source, "rb", buffering=0) as file:
        return registry.connection.send_file(url, file, 0, len(DATA), advance=progress.append)


def test_files_go_up_and_down_over_one_connection(registry: Registry, home: Origin, tmp_path: Path) -> None:
    for n in range(3):
        put(registry, "/blob", tmp_path / "source")
        assert home.received == DATA
        fetch(registry, link("/file"), tmp_path / f"{n}", Silent())
        assert (tmp_path / f"{n}").read_bytes() == DATA
    assert home.connections == 1
    assert all(headers["authorization"] == f"Bearer {TOKEN}" for _, _, headers in home.requests)


def test_a_redirect_and_a_link_to_another_origin_are_followed_without_the_token(
    registry: Registry, home: Origin, store: Origin, tmp_path: Path
) -> None:
    home.tricks = [f"{store.url}/signed?X=1"]
    fetch(registry, link("/file"), tmp_path / "a", Silent())
    put(registry, f"{store.url}/put?X=1", tmp_path / "source")
    assert (tmp_path / "a").read_bytes() == store.received == DATA
    assert [(method, path) for method, path, _ in store.requests] == [("GET", "/signed?X=1"), ("PUT", "/put?X=1")]
    assert not any("authorization" in headers or TOKEN in str(headers) for _, _, headers in store.requests)


def test_a_report_is_read_where_the_registry_redirects_to(registry: Registry, home: Origin, store: Origin) -> None:
    report = Report(check=Check.SMOKE, subject=Digest.of(DATA), base="tiny", base_fingerprint="f")
    store.data = report.model_dump_json().encode()
    home.tricks = [f"{store.url}/signed?X=1"]
    assert registry.report("acme/support@1", Digest.of(store.data)) == report
    assert TOKEN not in str(store.requests)


def test_a_download_that_is_cut_goes_on_where_it_broke(registry: Registry, home: Origin, tmp_path: Path) -> None:
    home.tricks = ["cut", "cut"]
    fetch(registry, link("/file"), tmp_path / "a", Silent())
    assert (tmp_path / "a").read_bytes() == DATA
    ranges = [headers.get("range") for _, _, headers in home.requests]
    half, rest = len(DATA) // 2, len(DATA) - len(DATA) // 2
    assert ranges == [None, f"bytes={half}-{len(DATA) - 1}", f"bytes={half + rest // 2}-{len(DATA) - 1}"]


def test_an_upload_that_is_cut_is_sent_again_and_progress_ends_at_its_size(
    registry: Registry, home: Origin, tmp_path: Path
) -> None:
    home.tricks = ["hang up", 503]
    steps: list[int] = []
    assert put(registry, "/blob", tmp_path / "source", steps).status == 200
    assert home.received == DATA
    assert sum(steps) == len(DATA)


def test_big_files_come_in_ranges_that_are_put_together(
    registry: Registry, home: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.client.transfer.file_transfer.RANGES_FROM_BYTES", 2**20)
    monkeypatch.setattr("registry.client.transfer.file_transfer.RANGE_BYTES", 2**20)
    home.tricks = [None, "cut"]
    fetch(registry, link("/file"), tmp_path / "a", Silent())
    assert (tmp_path / "a").read_bytes() == DATA
    home.data = DATA[:-1] + bytes([DATA[-1] ^ 1])
    with pytest.raises(Corrupt):
        fetch(registry, link("/file"), tmp_path / "b", Silent())
    assert not (tmp_path / "b").exists()


def test_a_server_without_ranges_is_said(registry: Registry, home: Origin, tmp_path: Path) -> None:
    home.tricks = ["cut", *["no ranges"] * 40]
    with pytest.raises(Unavailable, match="not the requested range"):
        fetch(registry, link("/file"), tmp_path / "a", Silent())
    assert not (tmp_path / "a").exists()


def test_more_or_other_bytes_than_the_manifest_says_are_refused(
    registry: Registry, home: Origin, tmp_path: Path
) -> None:
    for n, data in enumerate((DATA + b"more", DATA[:-1], b"x" + DATA[1:])):
        home.data = data
        with pytest.raises((Corrupt, Unavailable)):
            fetch(registry, link("/file"), tmp_path / f"{n}", Silent())
        assert not (tmp_path / f"{n}").exists()


def test_a_store_that_cannot_be_reached_is_not_taken_for_the_registry(
    registry: Registry, store: Origin, tmp_path: Path
) -> None:
    store.shutdown()
    store.server_close()
    with pytest.raises(Unavailable, match=f"the store at 127.0.0.1:{store.server_port} is unreachable") as caught:
        fetch(registry, link(f"{store.url}/x"), tmp_path / "x", Silent())
    assert caught.value.code == "STORE_UNAVAILABLE"
    assert "REGISTRY_S3_PUBLIC_ENDPOINT" in str(caught.value.next_step)


def test_a_disk_that_is_full_is_no_failure_of_the_line(
    registry: Registry, home: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, write = {str(tmp_path / "full")}, os.pwrite

    def writing(descriptor: int, data: bytes, start: int) -> int:
        if os.path.dirname(os.readlink(f"/proc/self/fd/{descriptor}")) in full and start + len(data) > 2**20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, start)

    monkeypatch.setattr(os, "pwrite", writing)
    (tmp_path / "full").mkdir()
    target = tmp_path / "full" / "x"
    with pytest.raises(OSError, match=f"No space left on device: '{target}'"):
        fetch(registry, link("/x"), target, Silent())
    assert (len(home.requests), target.exists()) == (1, False)
    cache = Cache(tmp_path / "cache")
    full.add(str(cache.path_of(Digest.of(DATA)).parent))
    there = tmp_path / "there"
    assert cache.fill(Digest.of(DATA), len(DATA), there, lambda path: fetch(registry, link("/x"), path, Silent()))
    assert there.read_bytes() == DATA
    assert [path for path in cache.root.rglob("*") if path.is_file()] == []


def test_an_early_refusal_of_the_store_is_read(registry: Registry, store: Origin, tmp_path: Path) -> None:
    store.tricks = ["refuse"] * 40
    with pytest.raises(Unavailable) as caught:
        put(registry, f"{store.url}/put?X-Amz-Signature=abc", tmp_path / "source")
    assert "X-Amz" not in caught.value.detail


def test_what_a_store_returns_becomes_a_sentence() -> None:
    def error(status: int, code: str) -> Any:
        url, content = "http://store:1/b/k?X-Amz-Signature=abc", f"<Code>{code}</Code>".encode()
        return store_error_of(HttpResponse(url, status, email.message.Message(), content))

    assert (error(400, "BadDigest").code, type(error(400, "BadDigest"))) == ("BLOB_MISMATCH", Invalid)
    assert error(503, "SlowDown").code == "STORE_UNAVAILABLE"
    assert error(503, "SlowDown").next_step == "try again once the store responds"
    assert error(416, "InvalidRange").code == "DIGEST_MISMATCH"
    assert error(403, "AccessDenied").next_step.startswith("links expire")
    assert "Signature" not in error(403, "AccessDenied").detail


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@contextlib.contextmanager
def proxy(response: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """The port of a proxy that handles each connection once, and the heads that it received."""
    heads: list[bytes] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client:
                    heads.append(client.recv(65536))
                    client.sendall(response)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], heads
        listener.shutdown(socket.SHUT_RDWR)


def test_a_proxy_is_used_for_all_but_what_no_proxy_names(environment: pytest.MonkeyPatch, home: Origin) -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    with proxy(response) as (port, heads), Connection("http://registry.example:81") as connection:
        environment.setenv("HTTP_PROXY", f"http://user:p%40ss@127.0.0.1:{port}")
        environment.setenv("NO_PROXY", "127.0.0.1")
        assert connection.send("GET", "/x").content == b"{}"
    with Connection(home.url) as connection:
        connection.receive("/file", lambda _piece: None)
    lines = heads[0].split(b"\r\n")
    assert lines[0] == b"GET http://registry.example:81/api/v1/x HTTP/1.1"
    assert {b"Host: registry.example:81", b"Proxy-Authorization: Basic dXNlcjpwQHNz"} <= set(lines)
    assert (len(heads), len(home.requests)) == (1, 1)


def test_https_goes_through_a_tunnel_without_headers_of_the_request(environment: pytest.MonkeyPatch) -> None:
    refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
    opened = Connection("https://registry.example", TOKEN, wait=lambda _: None)
    with proxy(refusal) as (port, heads), opened as connection:
        environment.setenv("ALL_PROXY", f"127.0.0.1:{port}")
        with pytest.raises(Unavailable, match="403 Forbidden"):
            connection.send("GET", "/x")
    assert heads[0].startswith(b"CONNECT registry.example:443 HTTP/1.")
    assert TOKEN.encode() not in b"".join(heads)
