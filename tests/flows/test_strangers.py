"""What one client without an account can take from others: at the server itself, and behind nginx and Caddy over TLS.

Clients have addresses of their own (127.0.0.x), which the proxies pass on.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import pytest

from registry.server.http.admission import STRANGER_BYTES, STRANGER_SECONDS, STRANGERS_BYTES_EACH
from tests.faults.servers import Server
from tests.flows import proxies
from tests.flows.proxies import insecure_context, issue_certificates

pytestmark = pytest.mark.security
BODIES = STRANGERS_BYTES_EACH // STRANGER_BYTES + 2
"""More than one network has space for."""


@dataclass(frozen=True)
class Site:
    """Where clients reach the server, by a proxy that it trusts or itself."""

    url: str
    responds_before_the_body: bool = True
    """Caddy keeps a response until the body of its client has ended."""

    def client(self, address: str, **headers: str) -> httpx.Client:
        transport = httpx.HTTPTransport(local_address=address, verify=insecure_context())
        return httpx.Client(transport=transport, base_url=self.url, headers=headers, timeout=60)

    def connect(self, address: str) -> socket.socket:
        parts = urlsplit(self.url)
        plain = socket.create_connection((str(parts.hostname), parts.port or 0), 60, (address, 0))
        return insecure_context().wrap_socket(plain) if parts.scheme == "https" else plain


@pytest.fixture(scope="module", params=["direct", "nginx", "caddy"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    kind, folder = request.param, tmp_path_factory.mktemp("site")
    trusted = {} if kind == "direct" else {"REGISTRY_TRUSTED_PROXIES": "127.0.0.1/32"}
    with Server({"REGISTRY_DATA": str(folder / "data"), **trusted}).running() as server:
        if kind == "direct":
            yield Site(server.url)
        elif kind == "nginx":
            if proxies.NGINX is None:
                pytest.skip("needs nginx")
            with proxies.nginx(folder / "nginx", server.url, issue_certificates(folder)) as url:
                yield Site(url)
        else:
            if proxies.CADDY is None:
                pytest.skip("needs caddy")
            with proxies.caddy(folder / "caddy", server.url) as url:
                yield Site(url, responds_before_the_body=False)


def test_bodies_that_are_kept_open_keep_nobody_from_signing_in(site: Site) -> None:
    host = urlsplit(site.url).netloc
    head = f"POST /api/v1/tokens/exchange HTTP/1.1\r\nHost: {host}\r\nContent-Length: {STRANGER_BYTES}\r\n\r\n"
    with ExitStack() as stack:
        started_at = time.monotonic()
        waiting = [stack.enter_context(site.connect("127.0.0.2")) for _ in range(BODIES)]
        for connection in waiting:
            connection.sendall(head.encode() + b" " * (STRANGER_BYTES - 1))
        for address in ("127.0.0.2", "127.0.0.3"):
            with site.client(address) as client:
                assert client.post("/api/v1/tokens/exchange", json={"assertion": "a"}).status_code == 401
                assert client.post("/sign-in", data={"token": "a"}).status_code == 403
        for connection in waiting if site.responds_before_the_body else ():
            assert _read_to_the_end(connection)[:12] == b"HTTP/1.1 408"
        assert time.monotonic() - started_at < 6 * STRANGER_SECONDS, "each has ended by itself"


def test_an_address_that_a_client_invents_is_not_believed(site: Site) -> None:
    statuses = []
    for n in range(12):
        with site.client("127.0.0.4", **{"X-Forwarded-For": f"203.0.113.{n}"}) as client:
            statuses.append(client.get("/api/v1/whoami", headers={"Authorization": "Bearer wrong"}).status_code)
    assert statuses == [401] * 10 + [429] * 2
    with site.client("127.0.0.5") as client:
        assert client.get("/api/v1/whoami", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_the_scheme_is_the_one_that_the_client_used(site: Site) -> None:
    with site.client(
        "127.0.0.6", **{"X-Forwarded-Proto": "https" if site.url.startswith("http:") else "http"}
    ) as client:
        cookie = client.get("/sign-in").headers["set-cookie"]
    assert cookie.startswith("__Host-") == site.url.startswith("https:")


def _read_to_the_end(connection: socket.socket) -> bytes:
    received = b""
    try:
        while data := connection.recv(2**16):
            received += data
            if b"BODY_STALLED" in received:
                break
    except (ConnectionError, ssl.SSLError):
        pass
    return received
