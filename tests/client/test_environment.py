"""What a client finds around it: proxies, certificates, many open files, files that change, long names."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from registry.api.transfer import CommitItem
from registry.client.core import Versions
from registry.client.local.destination import Destination
from registry.client.transport.connection import Connection
from registry.client.transport.retries import ATTEMPTS_LIMIT
from registry.errors import Invalid, NotFound, Unavailable
from registry.versions.files import NOTE
from tests.httpx_transports import HttpxTransport, MockTransport


@pytest.mark.parametrize("proxy", ["ftp://proxy.test:1", "http://[::1"])
def test_a_proxy_that_cannot_be_used_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with Connection("http://registry.test") as connection, pytest.raises(Invalid, match="ALL_PROXY") as caught:
        connection.send("GET", "/whoami")
    assert caught.value.code == "SETTING_INVALID"


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_certificates_that_cannot_be_read_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    file = tmp_path / "ca.pem"
    if text is not None:
        file.write_text(text)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with Connection("https://registry.test") as connection, pytest.raises(Invalid, match=r"ca\.pem"):
        connection.send("GET", "/whoami")


@pytest.mark.parametrize("proxied", [False, True])
def test_a_file_that_is_truncated_while_it_is_sent_is_reported_and_not_sent_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, proxied: bool
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"x" * 1000)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if proxied:
            monkeypatch.setenv("HTTP_PROXY", url)
            monkeypatch.delenv("NO_PROXY", raising=False)
            monkeypatch.delenv("no_proxy", raising=False)
        came: list[socket.socket] = []
        accepting = threading.Thread(target=lambda: came.append(listener.accept()[0]))
        accepting.start()
        with (
            Connection(url, wait=lambda _: pytest.fail("sent again")) as connection,
            open(file, "rb", 0) as source,
            pytest.raises(Invalid, match="truncated") as caught,
        ):
            connection.send_file("/blob", source, 0, 2000)
        accepting.join()
        came[0].close()
    assert caught.value.code == "FOLDER_INVALID"


def test_a_destination_may_have_a_name_as_long_as_names_get(tmp_path: Path) -> None:
    dest = tmp_path / ("名" * 85)
    with Destination(dest) as folder:
        (folder / NOTE).write_text("{}")
    assert os.listdir(tmp_path) == [dest.name]


def test_a_destination_that_appeared_while_another_was_moved_in_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two pulls into one DEST: the second one looked when there was nothing yet."""
    dest, there = tmp_path / "dest", Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: self != dest and there(self))
    for text in ("first", "second"):
        with Destination(dest) as folder:
            (folder / NOTE).write_text(text)
    assert (dest / NOTE).read_text() == "second"
    assert os.listdir(tmp_path) == ["dest"]


class SlowTransport(HttpxTransport):
    """Sends or takes a byte at a time, each of which takes a second; how often it was asked."""

    def __init__(self, clock: list[float]) -> None:
        self.clock, self.requests = clock, 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        for piece in request.stream:  # type: ignore[union-attr]
            self.clock[0] += 3600 if piece else 0
        return httpx.Response(200, content=self._drops())

    def _drops(self) -> Iterator[bytes]:
        for _ in range(1000):
            self.clock[0] += 1
            yield b"x"


@pytest.fixture
def slow_transport(monkeypatch: pytest.MonkeyPatch) -> SlowTransport:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return SlowTransport(clock)


def test_a_side_that_sends_a_byte_a_second_is_given_up(slow_transport: SlowTransport) -> None:
    came = bytearray()
    with (
        Connection("http://registry.test", transport=slow_transport) as connection,
        pytest.raises(Unavailable, match="seconds"),
    ):
        connection.receive("/blob", came.extend)
    assert 0 < len(came) < 1000


def test_a_side_that_takes_next_to_nothing_is_given_up(slow_transport: SlowTransport, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(3 * 2**20))
    steps: list[int] = []
    with (
        Connection("http://registry.test", transport=slow_transport, wait=lambda _: None) as connection,
        open(file, "rb", 0) as source,
        pytest.raises(Unavailable, match="seconds"),
    ):
        connection.send_file("/blob", source, 0, 3 * 2**20, advance=steps.append)
    assert slow_transport.requests == ATTEMPTS_LIMIT
    assert 0 < sum(steps) < 3 * 2**20


def test_the_commit_of_many_bytes_may_take_as_long_as_reading_and_copying_them() -> None:
    """A response that is not waited for is asked for again, and the registry would begin anew."""
    waited: list[float] = []

    def respond(request: httpx.Request) -> httpx.Response:
        waited.append(request.extensions["timeout"]["read"])
        return httpx.Response(404, json={"code": "PUSH_UNKNOWN", "title": "", "detail": "none"})

    with Versions("http://registry.test", transport=MockTransport(respond)) as registry:
        for size_bytes in (0, 20 * 2**30):
            with pytest.raises(NotFound):
                registry.commit_pushes([CommitItem(push_id="psh_one")], size_bytes=size_bytes)
    assert waited == [60, 60 + 2048]
