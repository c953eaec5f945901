"""Signed links of the local store over real sockets: what a thread handles, what goes to the application, and abuse."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from registry.digest import Digest
from registry.errors import Unavailable
from registry.server.local_links import connections, listener
from registry.server.local_links.connections import ConnectionLimits
from registry.server.storage import signed_links
from registry.server.storage.blobs import staging_key_of
from tests.link_server import PLAIN, RunningServer, head_of
from tests.processes import free_port

DATA = random.Random(3).randbytes(5 * 2**20 + 321)
HALF = len(DATA) // 2
SMALL = random.Random(4).randbytes(40_000)
HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    with RunningServer(tmp_path, run=request.param) as running:
        yield running
    assert running.leftovers() == [], "an upload left its temporary file"


@pytest.fixture
def client(server: RunningServer) -> Iterator[http.client.HTTPConnection]:
    created = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    yield created
    created.close()


def ask(
    client: http.client.HTTPConnection, method: str, target: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    client.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = client.getresponse()
    return response.status, response.read()


def rest_of(sock: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65536):
            received += data
    return received


# ------------------------------------------------------------------ what threads handle
def test_bytes_go_both_ways_over_one_connection(server: RunningServer, client: http.client.HTTPConnection) -> None:
    for n in range(3):
        assert ask(client, "PUT", server.write_link(DATA, f"psh_{n}"), DATA) == (204, b"")
        assert server.stored(DATA, f"psh_{n}") == DATA
        sock = client.sock
        assert ask(client, "GET", server.read_link(DATA)) == (200, DATA)
        assert ask(client, "GET", server.read_link(DATA), Range="bytes=1000-") == (206, DATA[1000:])
        assert client.sock is sock
    assert server.uploads == [("tok_1", staging_key_of(f"psh_{n}", Digest.of(DATA))) for n in range(3)]
    assert server.counts == {("PUT", 204): 3, ("GET", 200): 3, ("GET", 206): 3}


def test_an_empty_blob_is_written_and_read(server: RunningServer, client: http.client.HTTPConnection) -> None:
    assert ask(client, "PUT", server.write_link(b""), b"", Content_Length="0") == (204, b"")
    assert server.stored(b"") == b""
    assert ask(client, "GET", server.read_link(b"")) == (200, b"")


def test_responses_tell_browsers_to_run_nothing(server: RunningServer, client: http.client.HTTPConnection) -> None:
    client.request("GET", server.read_link(SMALL), headers={"X-Request-Id": "of-the-client"})
    response = client.getresponse()
    assert response.read() == SMALL
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Disposition"] == "attachment"
    assert response.headers["Cache-Control"] == "private, no-store"
    assert response.headers["ETag"] == f'"{Digest.of(SMALL)}"'
    assert response.headers["X-Request-Id"] == "of-the-client"


def test_a_paused_upload_and_a_slow_reader_get_everything(
    server: RunningServer, client: http.client.HTTPConnection
) -> None:
    with server.connect() as sock:
        sock.sendall(head_of("PUT", server.write_link(DATA), len(DATA)) + DATA[:HALF])
        assert ask(client, "GET", server.read_link(SMALL)) == (200, SMALL)
        sock.sendall(DATA[HALF:])
        assert sock.recv(1000).startswith(b"HTTP/1.1 204")
    client.close()
    client.connect()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    client.request("GET", server.read_link(DATA))
    response = client.getresponse()
    received = response.read(1000)
    with server.connect() as other:
        other.sendall(PLAIN)
        assert other.recv(1000).startswith(b"HTTP/1.1 200")
    assert received + response.read() == DATA


def test_one_connection_goes_back_and_forth_between_application_and_threads(
    server: RunningServer, client: http.client.HTTPConnection
) -> None:
    for n in range(3):
        assert ask(client, "GET", "/plain") == (200, b"ok")
        sock = client.sock
        assert ask(client, "PUT", server.write_link(DATA, f"psh_{n}"), DATA) == (204, b"")
        assert ask(client, "GET", "/plain") == (200, b"ok")
        assert ask(client, "GET", server.read_link(SMALL)) == (200, SMALL)
        assert client.sock is sock
    server.stop()  # a response is counted after it was sent
    assert server.counts == {("PUT", 204): 3, ("GET", 200): 3}


def test_a_head_may_arrive_in_pieces_and_wait_for_leave_to_send_the_body(server: RunningServer) -> None:
    head = head_of("PUT", server.write_link(SMALL), len(SMALL), "Expect: 100-continue")
    with server.connect() as sock:
        for first in (b"", PLAIN):
            if first:
                sock.sendall(first)
                assert sock.recv(1000).startswith(b"HTTP/1.1 200")
            for start, end in ((0, 40), (40, len(head) - 1), (len(head) - 1, len(head))):
                sock.sendall(head[start:end])
                with contextlib.suppress(TimeoutError):
                    sock.settimeout(0.1 if end < len(head) else 60)
                    received = sock.recv(1000)
            assert received == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(SMALL)
            assert sock.recv(1000).startswith(b"HTTP/1.1 204")
    assert server.stored(SMALL) == SMALL


def test_pipelined_requests_are_handled_in_turn_by_whom_they_are_for(server: RunningServer) -> None:
    put = head_of("PUT", server.write_link(DATA), len(DATA)) + DATA
    get = head_of("GET", server.read_link(SMALL))
    with server.connect() as sock:
        sock.sendall(put + get + put + PLAIN + get + PLAIN)
        received = b""
        while received.count(b"ok") < 2:
            received += sock.recv(65536)
    parts = [part.partition(b" ")[0] for part in received.replace(SMALL, b"").split(b"HTTP/1.1 ")[1:]]
    assert parts == [b"204", b"200", b"204", b"200", b"200", b"200"]
    assert received.count(SMALL) == 1, "what follows another request at once is read together with it"
    assert received.count(b"by the application") == 1


@pytest.mark.parametrize("end", [True, False])
def test_a_client_that_leaves_harms_no_other(
    server: RunningServer, client: http.client.HTTPConnection, end: bool
) -> None:
    with server.connect() as sock:
        sock.sendall(head_of("PUT", server.write_link(DATA), len(DATA)) + DATA[:HALF])
        if end:
            sock.shutdown(socket.SHUT_WR)
            assert rest_of(sock) == b""
    with server.connect() as sock:
        sock.sendall(head_of("GET", server.read_link(DATA)))
        sock.recv(1000)
    assert ask(client, "GET", server.read_link(DATA)) == (200, DATA)
    assert server.stored(DATA) is None


def test_wrong_bytes_are_refused_and_nothing_is_stored(
    server: RunningServer, client: http.client.HTTPConnection
) -> None:
    status, body = ask(client, "PUT", server.write_link(DATA), b"x" + DATA[1:])
    assert (status, b"BLOB_MISMATCH" in body) == (422, True)
    sock = client.sock
    assert ask(client, "GET", server.read_link(SMALL)) == (200, SMALL)
    assert client.sock is sock, "the body was read, so the connection can be used again"
    assert server.stored(DATA) is None


def test_connections_end_as_http_says(server: RunningServer) -> None:
    target = server.read_link(SMALL)
    for head in (
        head_of("GET", target, None, "Connection: close"),
        f"GET {target} HTTP/1.0\r\nHost: x\r\n\r\n".encode(),
    ):
        with server.connect() as sock:
            sock.sendall(head)
            response = rest_of(sock)
        assert response.endswith(SMALL)
        assert b"\r\nConnection: close\r\n" in response


def test_a_refused_upload_gets_the_reason(server: RunningServer, client: http.client.HTTPConnection) -> None:
    server.refuse = Unavailable("STORE_UNAVAILABLE", "the disk is full", retry_after_seconds=7)
    client.request("PUT", server.write_link(SMALL), SMALL)
    response = client.getresponse()
    assert (response.status, response.headers["Retry-After"], response.headers["Connection"]) == (503, "7", "close")
    assert b"the disk is full" in response.read()
    server.stop()  # a response is counted after it was sent
    assert server.counts == {("PUT", 503): 1}


def test_a_blob_that_is_gone_and_a_range_behind_its_end_are_refused(
    server: RunningServer, client: http.client.HTTPConnection
) -> None:
    link = server.read_link(SMALL)
    assert ask(client, "GET", link, Range=f"bytes={len(SMALL)}-") == (416, b"")
    sock = client.sock
    server.blobs.delete(server.store(SMALL))
    status, body = ask(client, "GET", link)
    assert (status, b"BLOB_UNKNOWN" in body, client.sock) == (404, True, sock)


def test_finished_requests_leave_nothing_for_the_garbage_collector(
    server: RunningServer, client: http.client.HTTPConnection
) -> None:
    many, target, unreachable = 100, server.read_link(SMALL), []
    other = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    for _ in range(4):  # threads of earlier tests may leave something in one of them
        gc.collect()
        gc.disable()
        try:
            for _ in range(many):
                ask(client, "GET", target)
                ask(other, "GET", "/plain")
            unreachable.append(gc.collect())
        finally:
            gc.enable()
    other.close()
    assert min(unreachable) < many


# ------------------------------------------------------------------ limits
@pytest.mark.security
def test_without_a_free_slot_or_share_the_application_responds(
    server: RunningServer, client: http.client.HTTPConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, number in (("SLOTS_PER_PERSON", 1), ("SLOTS_PER_GROUP", 1), ("SLOTS", 3)):
        monkeypatch.setattr(listener, limit, number)
    with server.connect() as sock:
        sock.sendall(head_of("PUT", server.write_link(DATA, owner="tok_1.aa.11"), len(DATA)) + DATA[:HALF])
        while not server.uploads:
            threading.Event().wait(0.01)
        for owner in ("tok_2", "tok_3.bb.22", "tok_4.bb."):
            assert ask(client, "GET", server.read_link(SMALL, owner=owner)) == (200, SMALL), owner
        for owner in ("tok_1.aa.11", "tok_5.aa.22", "tok_6.bb.11"):  # the same person, or the same namespace
            assert ask(client, "GET", server.read_link(SMALL, owner=owner)) == (200, b"by the application"), owner
        monkeypatch.setattr(listener, "SLOTS", 1)
        with server.connect() as other:
            other.sendall(head_of("GET", server.read_link(SMALL, owner="tok_2"), None, "Connection: close"))
            assert rest_of(other).endswith(b"by the application")
        sock.sendall(DATA[HALF:])
        assert sock.recv(1000).startswith(b"HTTP/1.1 204")


def test_idle_connections_hold_no_thread(server: RunningServer, client: http.client.HTTPConnection) -> None:
    with contextlib.ExitStack() as opened:
        for _ in range(4 * listener.SLOTS):
            sock = opened.enter_context(server.connect())
            sock.sendall(head_of("GET", server.read_link(SMALL)))
            while not (received := sock.recv(65536)).endswith(SMALL[-100:]):
                assert received
        assert ask(client, "GET", server.read_link(SMALL)) == (200, SMALL)
    server.stop()  # a response is counted after it was sent
    assert {status for _, status in server.counts} == {200}
    assert server.counts["GET", 200] == 4 * listener.SLOTS + 1


@pytest.mark.security
@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_a_drip_ends_the_transfer(tmp_path: Path, method: str) -> None:
    with RunningServer(tmp_path, stall_seconds=0.5) as server, server.connect() as sock:
        if method == "PUT":
            sock.sendall(head_of("PUT", server.write_link(DATA), len(DATA)))
            with contextlib.suppress(ConnectionError):
                for _ in range(10_000):
                    sock.sendall(b"x")
                    sock.settimeout(0.01)
                    with contextlib.suppress(TimeoutError):
                        assert sock.recv(1000).startswith(b"HTTP/1.1 408")
                        break
                else:
                    pytest.fail("the drip is still read")
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
            sock.sendall(head_of("GET", server.read_link(DATA * 4)))
            while not server.counts:
                threading.Event().wait(0.01)
            assert len(rest_of(sock)) < 4 * len(DATA)
        assert server.stored(DATA) is None
        assert server.leftovers() == []


@pytest.mark.security
def test_an_address_has_a_limit_of_connections_for_links_too(tmp_path: Path) -> None:
    with RunningServer(tmp_path, limits=ConnectionLimits(2, 10)) as server, contextlib.ExitStack() as opened:
        for _ in range(2):
            sock = opened.enter_context(server.connect())
            sock.sendall(head_of("GET", server.read_link(SMALL)))
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        with server.connect() as refused:
            assert rest_of(refused) == b""
        opened.close()
        for _ in range(5):
            with server.connect() as sock:
                sock.sendall(head_of("GET", server.read_link(SMALL), None, "Connection: close"))
                if rest_of(sock).endswith(SMALL):
                    return
        pytest.fail("ended connections are still counted")


# ------------------------------------------------------------------ abuse
@pytest.mark.security
def test_only_the_signed_request_is_handled(server: RunningServer) -> None:
    read, write = server.read_link(SMALL), server.write_link(SMALL)
    other = server.read_link(SMALL[::-1]).split("/")[-1].partition("?")[0]
    digest = Digest.of(SMALL).hex
    forged = {
        "another signature": ("GET", read[:-1] + ("0" if read[-1] != "0" else "1"), None),
        "no signature": ("GET", read.partition("&signature=")[0], None),
        "another key": ("GET", read.replace(digest, other), None),
        "another prefix": ("PUT", write.replace("staging/psh_1", "staging/psh_2"), SMALL),
        "the final key": ("PUT", write.replace("staging/psh_1", f"blobs/sha256/{digest[:2]}"), SMALL),
        "a later end": ("GET", read.replace("until=1", "until=2"), None),
        "another owner": ("GET", read.replace("owner=tok_1", "owner=tok_1.aa"), None),
        "another size": ("PUT", write.replace(f"size={len(SMALL)}", f"size={len(SMALL) + 1}"), SMALL + b"x"),
        "the other method": ("PUT", read, SMALL),
        "reading a staged blob": ("GET", write, None),
        "more after it": ("GET", read + "&x=1", None),
        "a dot segment": ("GET", read.replace("/links/", "/links/./"), None),
        "an encoded slash": ("GET", read.replace("blobs/", "blobs%2F"), None),
        "expired": ("GET", server.read_link(SMALL, seconds=0), None),
        "an absolute URL": ("GET", "http://x" + read, None),
    }
    for name, (method, target, body) in forged.items():
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        assert ask(client, method, target, body) == (200, b"by the application"), name
        client.close()
    assert server.uploads == []
    assert not server.counts


@pytest.mark.security
def test_a_link_ends_at_its_time_and_lives_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    signer = signed_links.LinkSigner(lambda: "secret")
    key, now = staging_key_of("psh_1", Digest.of(SMALL)), time.time()
    link = signer.sign("PUT", key, 5, seconds=7 * 24 * 3600, owner="tok_1")
    assert signer.check("PUT", link).key == key
    assert signed_links.LinkSigner(lambda: "another").find("PUT", link) is None
    monkeypatch.setattr(time, "time", lambda: now + signed_links.LIMIT_SECONDS + 1)
    with pytest.raises(Unavailable, match="expired"):
        signer.check("PUT", link)


@pytest.mark.security
def test_a_replay_can_only_write_the_same_bytes(server: RunningServer, client: http.client.HTTPConnection) -> None:
    link = server.write_link(SMALL)
    for _ in range(2):
        assert ask(client, "PUT", link, SMALL) == (204, b"")
    assert ask(client, "PUT", link, SMALL[::-1])[0] == 422
    assert server.stored(SMALL) == SMALL


@pytest.mark.security
@pytest.mark.parametrize(
    "framing",
    [
        f"Content-Length: {len(SMALL)}\r\nTransfer-Encoding: chunked",
        f"Transfer-Encoding: chunked\r\nContent-Length: {len(SMALL)}",
        f"Content-Length: {len(SMALL)}\r\nContent-Length: {len(SMALL)}",
        f"Content-Length: {len(SMALL)}\r\nContent-Length: 0",
        f"Content-Length: +{len(SMALL)}",
        f"Content-Length: {len(SMALL)},{len(SMALL)}",
        f"Content-Length: {len(SMALL) + 1}",
        f"Content-Length : {len(SMALL)}",
        f"Content-Length: {len(SMALL)}\r\n X: folded",
        f"Content-Length: {len(SMALL)}\nTransfer-Encoding: chunked",
        f"Content-Length: {len(SMALL)}\r\nTransfer-Encoding\x0b: chunked",
        f"X: \x00\r\nContent-Length: {len(SMALL)}",
        "X-None: 1",
        *(f"Content-Length: {len(SMALL)}\r\n" + "\r\n".join(f"X-{n}: 1" for n in range(count)) for count in (99, 1000)),
    ],
)
def test_a_request_with_unusual_framing_is_no_link(server: RunningServer, framing: str) -> None:
    head = f"PUT {server.write_link(SMALL)} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode()
    with server.connect() as sock:
        with contextlib.suppress(OSError):
            sock.sendall(head + SMALL)
            sock.shutdown(socket.SHUT_WR)
        rest_of(sock)
    assert server.stored(SMALL) is None
    assert server.uploads == []


@pytest.mark.security
def test_the_body_of_a_link_is_never_read_as_a_request(server: RunningServer) -> None:
    body = PLAIN * 100
    with server.connect() as sock:
        sock.sendall(head_of("PUT", server.write_link(body), len(body), "Connection: close") + body + PLAIN)
        response = rest_of(sock)
    assert response.startswith(b"HTTP/1.1 204")
    assert b"ok" not in response
    assert server.stored(body) == body


@pytest.mark.security
def test_half_a_head_holds_no_thread_and_ends(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    head = head_of("PUT", server.write_link(SMALL), len(SMALL))
    with contextlib.ExitStack() as opened:
        clients = [opened.enter_context(server.connect()) for _ in range(2 * listener.SLOTS)]
        for sock in clients:
            sock.sendall(head[:-10])
        for sock in clients:
            assert rest_of(sock).startswith(b"HTTP/1.1 408")


# ------------------------------------------------------------------ stop
def test_a_stop_lets_transfers_end_and_closes_idle_connections(server: RunningServer) -> None:
    with server.connect() as idle, server.connect() as sock:
        idle.sendall(head_of("GET", server.read_link(SMALL)))
        assert idle.recv(1000)
        sock.sendall(head_of("PUT", server.write_link(DATA), len(DATA)) + DATA[:HALF])
        while not server.uploads:
            threading.Event().wait(0.01)
        server.server.should_exit = True
        rest_of(idle)
        with pytest.raises(OSError):
            server.connect()
        sock.sendall(DATA[HALF:])
        response = rest_of(sock)
    assert response.startswith(b"HTTP/1.1 204")
    assert b"\r\nConnection: close\r\n" in response
    assert server.stored(DATA) == DATA


def test_a_stop_ends_a_transfer_that_takes_too_long(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.server.local_links.server.GRACE_SECONDS", 0.2)
    with server.connect() as sock:
        sock.sendall(head_of("PUT", server.write_link(DATA), len(DATA)) + DATA[:HALF])
        while not server.uploads:
            threading.Event().wait(0.01)
        server.stop()
        assert rest_of(sock) == b""
    assert server.stored(DATA) is None


# ------------------------------------------------------------------ proxies
@pytest.fixture
def proxy(server: RunningServer, tmp_path: Path) -> Iterator[int]:
    """The port of haproxy, which uses one connection to the server again for requests of all its clients."""
    port = free_port()
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(f"""
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
    http-reuse always
frontend all
    bind 127.0.0.1:{port}
    default_backend registry
backend registry
    server registry 127.0.0.1:{server.port} maxconn 1
""")
    process = subprocess.Popen([str(HAPROXY), "-f", str(configuration), "-db"], stderr=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            threading.Event().wait(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.skipif(HAPROXY is None, reason="needs haproxy")
def test_behind_a_proxy_that_reuses_connections_every_request_reaches_whom_it_is_for(
    server: RunningServer, proxy: int
) -> None:
    first, second = (http.client.HTTPConnection("127.0.0.1", proxy, timeout=60) for _ in range(2))
    assert ask(first, "PUT", server.write_link(DATA), DATA) == (204, b"")
    assert ask(second, "GET", server.read_link(SMALL)) == (200, SMALL)
    assert ask(first, "GET", "/plain") == (200, b"ok")
    assert ask(second, "GET", server.read_link(SMALL)) == (200, SMALL)
    assert ask(first, "GET", "/plain") == (200, b"ok")
    assert ask(second, "PUT", server.write_link(DATA), DATA) == (204, b"")
    first.close()
    second.close()
