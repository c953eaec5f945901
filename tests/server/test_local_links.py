"""Signed links of the local store over real sockets, and abuse of them."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import logging
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry.digest import Digest
from registry.errors import Unavailable
from registry.server.http import server as http_server
from registry.server.storage.blobs import BlobWriter, key_of, write_blob
from registry.server.storage.local import LocalBlobs
from registry.server.storage.signed_links import LinkSigner
from tests.harness import Harness
from tests.link_server import RunningServer, head_of, rest_of, running
from tests.server.test_local_link_routes import planned_link

DATA = random.Random(3).randbytes(5 * 2**20 + 321)
HALF = len(DATA) // 2
SMALL = random.Random(4).randbytes(40_000)
HEALTH = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


class Links:
    """A registry behind the server, with links to read and to write blobs."""

    def __init__(self, harness: Harness, server: RunningServer, root: Path) -> None:
        self.harness, self.server, self.root = harness, server, root
        self._names = (f"acme/n{n}" for n in itertools.count())

    def read(self, data: bytes) -> str:
        key = key_of(Digest.of(data))
        write_blob(self.harness.blobs, key, [data], limit_bytes=len(data))
        signer = self.harness.blobs.links
        assert signer is not None
        return signer.sign("GET", key, len(data), seconds=60, owner="tok_1")

    def write(self, data: bytes) -> str:
        return planned_link(self.harness, data, next(self._names))

    def stored(self) -> list[bytes]:
        """The blobs that arrived."""
        return [b"".join(self.harness.blobs.open(stat.key)) for stat in self.harness.blobs.list("blobs/")]

    def leftovers(self) -> list[Path]:
        return list((self.root / "tmp").glob("*"))


@pytest.fixture
def links(database_url: str, tmp_path: Path) -> Iterator[Links]:
    blobs = LocalBlobs(tmp_path / "blobs")
    blobs.links = LinkSigner(lambda: "secret")
    with Harness(database_url, blobs=blobs) as harness:
        harness.add_base()
        with running(harness.app) as server:
            yield Links(harness, server, blobs.root)
        assert list((blobs.root / "tmp").glob("*")) == [], "an upload left its temporary file"
        for stat in blobs.list("blobs/"):
            blobs.delete(stat.key)  # they have no rows


@pytest.fixture
def client(links: Links) -> Iterator[http.client.HTTPConnection]:
    created = http.client.HTTPConnection("127.0.0.1", links.server.port, timeout=60)
    yield created
    created.close()


def ask(
    client: http.client.HTTPConnection, method: str, target: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    client.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = client.getresponse()
    return response.status, response.read()


def test_bytes_go_both_ways_over_one_connection(links: Links, client: http.client.HTTPConnection) -> None:
    assert ask(client, "PUT", links.write(DATA), DATA) == (204, b"")
    assert links.stored() == [DATA]
    sock = client.sock
    assert ask(client, "GET", links.read(DATA)) == (200, DATA)
    assert ask(client, "GET", links.read(DATA), Range="bytes=1000-") == (206, DATA[1000:])
    assert ask(client, "GET", links.read(DATA), Range=f"bytes={len(DATA)}-") == (416, b"")
    assert ask(client, "GET", links.read(b"")) == (200, b"")
    assert client.sock is sock


def test_responses_tell_browsers_to_run_nothing(links: Links, client: http.client.HTTPConnection) -> None:
    client.request("GET", links.read(SMALL), headers={"X-Request-Id": "of-the-client"})
    response = client.getresponse()
    assert response.read() == SMALL
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Disposition"] == "attachment"
    assert response.headers["Cache-Control"] == "private, no-store"
    assert response.headers["ETag"] == f'"{Digest.of(SMALL)}"'
    assert response.headers["X-Request-Id"] == "of-the-client"


def test_a_paused_upload_and_a_slow_reader_delay_no_one(links: Links, client: http.client.HTTPConnection) -> None:
    with links.server.connect() as sock:
        sock.sendall(head_of("PUT", links.write(DATA), len(DATA)) + DATA[:HALF])
        assert ask(client, "GET", links.read(SMALL)) == (200, SMALL)
        sock.sendall(DATA[HALF:])
        assert sock.recv(1000).startswith(b"HTTP/1.1 204")
    client.close()
    client.connect()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    client.request("GET", links.read(DATA))
    response = client.getresponse()
    received = response.read(1000)
    with links.server.connect() as other:
        other.sendall(HEALTH)
        assert other.recv(1000).startswith(b"HTTP/1.1 200")
    assert received + response.read() == DATA


@pytest.mark.parametrize("end", [True, False])
def test_a_client_that_leaves_harms_no_other(links: Links, client: http.client.HTTPConnection, end: bool) -> None:
    with links.server.connect() as sock:
        sock.sendall(head_of("PUT", links.write(DATA[::-1]), len(DATA)) + DATA[::-1][:HALF])
        if end:
            sock.shutdown(socket.SHUT_WR)
            rest_of(sock)
    with links.server.connect() as sock:
        sock.sendall(head_of("GET", links.read(DATA)))
        sock.recv(1000)
    assert ask(client, "GET", links.read(DATA)) == (200, DATA)
    links.server.stop()
    assert links.stored() == [DATA], "the bytes of whoever left are stored"


def test_wrong_bytes_are_refused_and_nothing_is_stored(links: Links, client: http.client.HTTPConnection) -> None:
    status, body = ask(client, "PUT", links.write(DATA), b"x" + DATA[1:])
    assert (status, b"BLOB_MISMATCH" in body) == (422, True)
    assert links.stored() == []


def test_a_refused_upload_gets_the_reason_though_it_still_sends(
    links: Links, client: http.client.HTTPConnection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> BlobWriter:
        raise Unavailable("STORE_UNAVAILABLE", "the disk is full", retry_after_seconds=7)

    monkeypatch.setattr(links.harness.blobs, "open_writer", refuse)
    link = links.write(DATA)
    client.request("PUT", link, DATA)
    response = client.getresponse()
    assert (response.status, response.headers["Retry-After"]) == (503, "7")
    assert b"the disk is full" in response.read()
    links.server.stop()  # the line follows the response
    [record] = [r for r in caplog.records if r.name == "registry.server.requests" and r.levelno == logging.ERROR]
    fields = record.fields  # type: ignore[attr-defined]
    assert (fields["route"], fields["problem"], fields["detail"]) == (
        "/api/v1/links/{key}", "STORE_UNAVAILABLE", "the disk is full"
    )  # fmt: skip


# ------------------------------------------------------------------ abuse
@pytest.mark.security
def test_an_upload_that_drips_ends(database_url: str, tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    with contextlib.ExitStack() as stack:
        harness = stack.enter_context(Harness(database_url, blobs=blobs, stall_seconds=1))
        harness.add_base()
        sock = stack.enter_context(stack.enter_context(running(harness.app)).connect())
        sock.sendall(head_of("PUT", planned_link(harness, DATA), len(DATA)))
        sock.settimeout(0.01)
        with contextlib.suppress(ConnectionError):
            for _ in range(10_000):
                sock.sendall(b"x")
                with contextlib.suppress(TimeoutError):
                    assert sock.recv(1000).startswith(b"HTTP/1.1 408")
                    break
            else:
                pytest.fail("the drip is still read")
    assert list(blobs.list("blobs/")) == []


@pytest.mark.security
def test_a_reader_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "UNREAD_SECONDS", 1)
    gone = threading.Event()

    async def endless(scope: dict[str, object], receive: Callable[..., object], send: Callable[..., object]) -> None:  # noqa: ARG001
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[misc]
        while server.server.server_state.connections:
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})  # type: ignore[misc]
        gone.set()

    with running(endless) as server, server.connect() as sock:
        sock.sendall(HEALTH)
        assert sock.recv(1000)
        assert gone.wait(60)


@pytest.mark.security
def test_a_replay_can_only_write_the_same_bytes(links: Links, client: http.client.HTTPConnection) -> None:
    link = links.write(SMALL)
    for _ in range(2):
        assert ask(client, "PUT", link, SMALL) == (204, b"")
    assert ask(client, "PUT", link, SMALL[::-1])[0] == 422
    assert links.stored() == [SMALL]


# ------------------------------------------------------------------ stop
def test_a_stop_lets_transfers_end(links: Links) -> None:
    with links.server.connect() as sock:
        sock.sendall(head_of("PUT", links.write(DATA), len(DATA)) + DATA[:HALF])
        while not links.leftovers():
            threading.Event().wait(0.01)
        links.server.server.should_exit = True
        with contextlib.suppress(ConnectionError):  # refused, or reset if it was not accepted yet
            while True:
                links.server.connect().close()
        sock.sendall(DATA[HALF:])
        assert rest_of(sock).startswith(b"HTTP/1.1 204")
    assert links.stored() == [DATA]


def test_a_stop_ends_a_transfer_that_takes_too_long(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "GRACE_SECONDS", 0.2)
    blobs = LocalBlobs(tmp_path / "blobs")
    with Harness(database_url, blobs=blobs) as harness:
        harness.add_base()
        with running(harness.app) as server, server.connect() as sock:
            sock.sendall(head_of("PUT", planned_link(harness, DATA), len(DATA)) + DATA[:HALF])
            while not list((blobs.root / "tmp").glob("*")):
                threading.Event().wait(0.01)
            server.stop()
            rest_of(sock)
        assert list(blobs.list("blobs/")) == []
        assert list((blobs.root / "tmp").glob("*")) == []
