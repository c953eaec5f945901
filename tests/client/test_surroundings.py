"""What a client finds around it: proxies, certificates, many open files, files that change, long names."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.client import sockets
from registry.client.connection import Connection
from registry.client.destination import Destination
from registry.errors import Invalid
from registry.manifest import NOTE

HIGH = 1100
"""A descriptor that `select` does not know."""


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard <= HIGH:
        pytest.skip("this machine lets no process open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HIGH + 10), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_kept_connection_is_looked_at_where_thousands_of_files_are_open(many_files: None) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(fileno=fcntl.fcntl(ours.fileno(), fcntl.F_DUPFD, HIGH)) as high:
        assert not sockets._speaks(high)
        theirs.send(b"bye")
        assert sockets._speaks(high)


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
def test_a_file_that_becomes_shorter_while_it_is_sent_is_told_as_that_and_not_sent_again(
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
            pytest.raises(Invalid, match="shorter") as caught,
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
