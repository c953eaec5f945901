"""Links and redirects of a hostile registry, and where a token may go."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from registry.client.registry import Registry
from registry.client.transport import links as urls
from registry.client.transport.connection import Connection
from registry.errors import Corrupt, Invalid
from tests.httpx_transports import MockTransport

pytestmark = pytest.mark.security
PRESIGNED = "?X-Amz-Signature=secret"


def resolve_to(address: str) -> Callable[..., list[object]]:
    return lambda _host, *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]


@pytest.mark.parametrize(
    ("registry", "link"),
    [
        ("https://registry.test", "http://store.test/blob"),
        ("https://registry.test", "http://registry.test/blob"),
        ("https://registry.test", "file:///etc/passwd"),
        ("http://registry.test", "ftp://store.test/blob"),
        ("http://registry.test", "gopher://store.test/blob"),
        ("https://93.184.216.34", "https://169.254.169.254/latest/meta-data"),
        ("http://93.184.216.34", "http://127.0.0.1:9000/blob"),
        ("http://93.184.216.34", "http://[::1]/blob"),
        ("http://93.184.216.34", "http://[::ffff:127.0.0.1]/blob"),
        ("http://93.184.216.34", "http://[fe80::1]/blob"),
        ("http://93.184.216.34", "http://[fd00:ec2::254]/blob"),
        ("http://93.184.216.34", "http://0.0.0.0/blob"),
        ("http://93.184.216.34", "http://2130706433/blob"),
        ("http://93.184.216.34", "http://localhost:6379/"),
        ("https://registry.test", "https://[::1"),
        ("http://127.0.0.1:8000", "http://169.254.169.254/latest/meta-data"),
        ("http://localhost:8000", "http://[fd00:ec2::254]/blob"),
        ("http://169.254.7.7:8000", "http://127.0.0.1:6379/"),
    ],
)
def test_a_dangerous_link_is_refused_at_once(registry: str, link: str) -> None:
    with pytest.raises(Corrupt) as caught:
        urls.resolve_link(registry + "/", link + PRESIGNED, registry, in_process=False)
    assert caught.value.code == "RESPONSE_INVALID"
    assert "secret" not in caught.value.detail


def test_a_name_that_resolves_to_this_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolve_to("127.0.0.1"))
    own = "http://93.184.216.34"
    monkeypatch.setattr(urls, "_addresses_of", lambda host: [host] if host[0].isdigit() else ["127.0.0.1"])
    with pytest.raises(Corrupt, match="this machine"):
        urls.resolve_link(f"{own}/", "http://innocent.test/blob", own, in_process=False)


@pytest.mark.parametrize("address", ["fe80::1%eth0", "169.254.7.7", "169.254.169.254", "93.184.216.34"])
def test_a_token_goes_unencrypted_to_loopback_addresses_only(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """A name such as `registry.local` is often link-local, and one name can resolve to this machine and another."""
    monkeypatch.delenv("ADAPTER_INSECURE", raising=False)
    infos = [*resolve_to("127.0.0.1")(""), *resolve_to(address)("")]
    for resolved in (infos, infos[1:]):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, resolved=resolved, **__: resolved)
        with pytest.raises(Invalid, match="plain http"):
            Connection("http://registry.local:8000", "token")
        Connection("http://registry.local:8000", "token", insecure=True).close()
    monkeypatch.setattr(socket, "getaddrinfo", resolve_to("127.0.0.1"))
    with Connection("http://registry.local:8000", "token") as connection:
        connection._check_peer(connection.url, "127.0.0.1")
        with pytest.raises(Invalid, match="plain http"):  # the name resolves to another address now
            connection._check_peer(connection.url, address)


@pytest.mark.parametrize(
    ("registry", "link"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:9000/blob"),
        ("http://localhost:8000", "http://127.0.0.1:9000/blob"),
        ("http://10.0.0.5:8000", "http://10.0.0.6:9000/blob"),
        ("http://10.0.0.5:8000", "https://10.0.0.6/blob"),
        ("https://registry.test/sub", "/api/v1/blob"),
    ],
)
def test_a_link_to_a_store_beside_the_registry_is_followed(registry: str, link: str) -> None:
    assert urls.resolve_link(registry + "/", link, registry, in_process=False)


def test_no_byte_is_sent_to_a_dangerous_link_or_redirect(tmp_path: Path) -> None:
    """Up, down and by redirect, through the class that follows them."""
    reached = list[str]()

    def respond(request: httpx.Request) -> httpx.Response:
        reached.append(str(request.url))
        return httpx.Response(302, headers={"location": "http://store.test/blob"})

    transport = MockTransport(respond)
    connection = Connection(
        "https://registry.test", "token", transport=transport, other_transport=transport, wait=lambda _: None
    )
    (tmp_path / "file").write_bytes(b"weights")
    with open(tmp_path / "file", "rb", buffering=0) as file, pytest.raises(Corrupt):
        connection.send_file("http://store.test/blob", file, 0, 7)
    for url in ("http://store.test/blob", "file:///etc/passwd"):
        with pytest.raises(Corrupt):
            connection.receive(url, lambda _piece: None)
    assert reached == []
    for read in (connection.receive, lambda url, _take: connection.stream(url).__enter__()):
        with pytest.raises(Corrupt, match="https never leads to http"):
            read("/api/v1/blob", lambda _piece: None)
    assert reached == ["https://registry.test/api/v1/blob"] * 2


def test_a_token_goes_over_plain_http_to_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADAPTER_INSECURE", raising=False)
    with pytest.raises(Invalid, match="plain http") as caught:
        Registry("http://93.184.216.34", "token")
    assert "ADAPTER_INSECURE" in caught.value.next_step
    for url, token in (("http://93.184.216.34", ""), ("http://127.0.0.1:1", "token"), ("https://93.184.216.34", "t")):
        Registry(url, token).close()
    monkeypatch.setenv("ADAPTER_INSECURE", "1")
    Registry("http://93.184.216.34", "token").close()


def test_a_name_that_leads_to_this_machine_only_when_it_is_connected_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """DNS rebinding: the name has a public address for the check, and this machine's for the connection."""
    (tmp_path / "file").write_bytes(b"weights")
    with socket.create_server(("127.0.0.1", 0)) as listener, Registry("http://93.184.216.34") as registry:

        def rebind(host: str, port: int | None, *_: object, **__: object) -> list[object]:
            is_checked = port is None or host == "93.184.216.34"
            address = "93.184.216.34" if is_checked else "127.0.0.1"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

        monkeypatch.setattr(socket, "getaddrinfo", rebind)
        url = f"http://innocent.test:{listener.getsockname()[1]}/blob"
        with pytest.raises(Corrupt, match=r"which is 127\.0\.0\.1 now"):
            registry.connection.receive(url, lambda _piece: None)
        with open(tmp_path / "file", "rb", buffering=0) as file, pytest.raises(Corrupt, match=r"127\.0\.0\.1 now"):
            registry.connection.send_file(url, file, 0, 7)
        for _ in range(2):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(1) == b""
