"""Responses without end, responses that drip, silent peers, proxies, and how long a client tries again."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest

from registry.client import transport
from registry.client.registry import Registry
from registry.client.transport import connection, http_transport
from registry.client.transport.connection import Connection
from registry.errors import Corrupt, Invalid, RegistryError, TooLarge, Unavailable
from tests.client.test_api import URL, WHO, ScriptedServer, link_to, problem, script
from tests.httpx_transports import MockTransport

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
Script = Callable[[Callable[[bytes], None], threading.Event], None]


@contextlib.contextmanager
def peer(response: Script) -> Iterator[tuple[str, list[int]]]:
    """A server that handles every connection by a script, until the client hangs up; its URL and the bytes it sent."""
    sent, stop = list[int](), threading.Event()

    def serve(client: socket.socket) -> None:
        def send(data: bytes) -> None:
            client.sendall(data)
            sent.append(len(data))

        with client, contextlib.suppress(OSError):
            client.recv(2**16)
            response(send, stop)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", sent
        finally:
            stop.set()
            listener.shutdown(socket.SHUT_RDWR)


def endless(head: bytes, piece: bytes) -> Script:
    def respond(send: Callable[[bytes], None], stop: threading.Event) -> None:
        send(head)
        while not stop.is_set():
            send(piece)

    return respond


def dripping(head: bytes, piece: bytes) -> Script:
    def respond(send: Callable[[bytes], None], stop: threading.Event) -> None:
        send(head)
        while not stop.wait(0.02):
            send(piece)

    return respond


def silent(_send: Callable[[bytes], None], stop: threading.Event) -> None:
    stop.wait()


@pytest.mark.security
@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (OK + b"\r\n", b" " * 2**16),
        (OK + b"Content-Length: 99999999999\r\n\r\n", b" " * 2**16),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 2**16 + b"\r\n"),
    ],
)
def test_an_endless_response_ends_at_the_limit(head: bytes, piece: bytes) -> None:
    with peer(endless(head, piece)) as (url, sent), Registry(url) as registry:
        with pytest.raises(Corrupt, match=f"over {transport.RESPONSE_LIMIT_BYTES} bytes"):
            registry.whoami()
        assert sum(sent) < 2 * transport.RESPONSE_LIMIT_BYTES


@pytest.mark.security
@pytest.mark.parametrize(
    ("head", "piece"),
    [(OK + b"\r\n", b" "), (OK + b"Content-Length: 100000\r\n\r\n", b" "), (b"HTTP/1.1 200 OK\r\n", b"X")],
)
def test_a_dripping_response_ends(head: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time and the whole never does; also where the head drips."""
    monkeypatch.setenv(connection.TIMEOUT_SETTING, "0.3")
    monkeypatch.setattr(http_transport, "RESPONSE_SECONDS", 0.2)
    expected = pytest.raises(Unavailable, match="did not arrive as a whole")
    with peer(dripping(head, piece)) as (url, _), Registry(url) as registry, expected:
        registry.whoami()


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"


@pytest.mark.security
@pytest.mark.parametrize("script", [endless, dripping])
def test_lines_behind_a_file_end(script: Callable[[bytes, bytes], Script], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "READ_SECONDS", 0.2)
    with peer(script(CHUNKED + b"0\r\n", b"x-t: 1\r\n")) as (url, _), Registry(url) as registry:
        with pytest.raises(Unavailable, match="did not arrive as a whole"):
            registry.connection.receive(f"{url}/blob", lambda _: None)
        with (
            pytest.raises(Unavailable, match="did not arrive as a whole"),
            registry.connection.stream(f"{url}/blob") as chunks,
        ):
            list(chunks)


@pytest.mark.security
def test_a_deadline_ends_a_response_that_never_pauses_and_its_repetitions() -> None:
    with peer(endless(OK + b"\r\n", b" ")) as (url, sent), Registry(url) as registry:
        with transport.deadline(0.3), pytest.raises(Unavailable, match="did not arrive as a whole"):
            registry.whoami()
        assert sum(sent) < transport.RESPONSE_LIMIT_BYTES


@pytest.mark.security
@pytest.mark.parametrize("name", ["files", "uploads"])
def test_a_longer_file_than_requested_ends_at_its_length(name: str) -> None:
    wire = ScriptedServer(lambda _: httpx.Response(206, content=iter([b"x" * 100] * 100)))
    with (
        pytest.raises(Corrupt, match="more than the 10 bytes"),
        wire.registry().read(link_to(f"/{name}", 1000), start=0, length=10) as chunks,
    ):
        list(chunks)


def test_a_silent_peer_is_reported_and_ends_by_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(connection.TIMEOUT_SETTING, "0.5")
    monkeypatch.setattr(connection, "SILENT_SECONDS", 0.01)
    lines = list[str]()
    with peer(silent) as (url, _), Registry(url) as registry:
        registry.connection.on_wait = lines.append
        with pytest.raises(Unavailable, match="no byte moved"):
            registry.whoami()
    assert len(lines) == 1
    assert lines[0].startswith(f"no response from {url} yet")
    assert connection.TIMEOUT_SETTING in lines[0]


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_timeout_that_is_not_a_number_of_seconds_is_a_setting(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(connection.TIMEOUT_SETTING, text)
    with pytest.raises(Invalid, match=connection.TIMEOUT_SETTING):
        Registry(URL)


class ScriptedRegistry:
    """A registry that responds by a script, and the pauses that its client makes."""

    def __init__(self, *responses: httpx.Response | Exception) -> None:
        self.wire, self.pauses, self.lines = ScriptedServer(script(*responses)), list[float](), list[str]()
        transport = MockTransport(self.wire)
        opened = Connection(URL, "t", transport=transport, wait=self.pauses.append)
        opened.on_wait = self.lines.append
        self.registry = Registry(URL, connection=opened)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_whose_registry_restarts_is_waited_for(status: int) -> None:
    scripted = ScriptedRegistry(*[httpx.Response(status)] * 8, httpx.Response(200, json=WHO))
    assert scripted.registry.whoami().actor == "ci"
    assert len(scripted.pauses) == 8
    assert f"responded with {status}" in scripted.lines[0]
    assert "trying again" in scripted.lines[0]


def test_the_client_gives_up_after_a_minute() -> None:
    scripted = ScriptedRegistry(*[problem(503, "DATABASE_UNAVAILABLE")] * 100)
    with pytest.raises(Unavailable):
        scripted.registry.whoami()
    assert 20 < sum(scripted.pauses) <= 60


def test_a_pause_is_as_long_as_the_other_side_asks_for_and_never_over_the_patience() -> None:
    unavailable = httpx.Response(503, headers={"retry-after": "20"})
    scripted = ScriptedRegistry(unavailable, httpx.Response(200, json=WHO))
    scripted.registry.whoami()
    assert 20 <= scripted.pauses[0] <= 24
    scripted = ScriptedRegistry(httpx.Response(503, headers={"retry-after": "600"}))
    with pytest.raises(Unavailable):
        scripted.registry.whoami()
    assert scripted.pauses == []


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [(413, TooLarge, "client_max_body_size"), (502, Unavailable, "proxy"), (504, Unavailable, "proxy")],
)
def test_a_response_of_a_proxy_is_named_as_such(status: int, kind: type[RegistryError], words: str) -> None:
    scripted = ScriptedRegistry(*[httpx.Response(status, text="<html>nginx</html>")] * 100)
    with pytest.raises(kind) as caught:
        scripted.registry.whoami()
    assert "proxy" in caught.value.detail
    assert str(status) in caught.value.detail
    assert words in caught.value.detail + caught.value.next_step


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 500])
@pytest.mark.parametrize("code", ["FROM_THE_FUTURE", "", 401, None, ["UNAUTHORIZED"]])
def test_an_error_with_an_unknown_code_is_a_wrong_response(status: int, code: object) -> None:
    scripted = ScriptedRegistry(httpx.Response(status, json={"code": code, "detail": "go away"}))
    with pytest.raises(Corrupt, match="does not know: go away") as caught:
        scripted.registry.whoami()
    assert caught.value.code == "RESPONSE_INVALID"


@pytest.mark.parametrize("seconds", [-5, 10**400, 1.5, "5", True])
def test_a_wrong_time_to_wait_is_no_internal_error(seconds: object) -> None:
    problem = {"code": "TRY_LATER", "detail": "busy", "retry_after_seconds": seconds}
    response = httpx.Response(503, json=problem)
    waits: list[float] = []
    with Registry(URL, "", MockTransport(lambda _: response)) as registry:
        registry.connection._wait = waits.append
        with pytest.raises(Unavailable, match="busy"):
            registry.whoami()
    assert all(wait >= 0 for wait in waits)
