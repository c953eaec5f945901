"""`WebhookAddress`: the address that a webhook's URL leads to. Guards against requests to internal addresses (SSRF).

- Only public addresses are called, over https on `PUBLIC_PORTS`. Private networks that the operator allows may be
  called over http and on any port, too.
- A host is resolved once per request, within `LOOKUP_SECONDS` and in a thread of its own: a silent name server holds
  none of the senders. All of its addresses must be allowed, and the connection goes to the address that
  was checked, so DNS rebinding has no effect. IPv6 that embeds an IPv4 address is checked by both addresses.
"""

import ipaddress
import re
import socket
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from registry.errors import Invalid
from registry.findings import Finding

PORTS = {"https": 443, "http": 80}
PUBLIC_PORTS = (443, 8443)
LOOKUP_SECONDS = 5.0
LOOKUPS_LIMIT = 64
"""Lookups at a time. One that is given up counts until the resolver gives up, too."""
_lookups = threading.BoundedSemaphore(LOOKUPS_LIMIT)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")
_NOT_PUBLIC = [ipaddress.ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20")]
"""Networks of IANA's registries of special-purpose addresses that some releases of Python 3.11 call global."""
_NEXT_STEP = "use a public https URL, or allow the network in the server's setting REGISTRY_WEBHOOK_PRIVATE"
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class WebhookAddress:
    """The address to connect to, and the host and path of the request."""

    scheme: str
    host: str
    port: int
    address: str
    path: str

    @property
    def host_header(self) -> str:
        """The Host header: without the port if it is the default one."""
        return self.host if self.port == PORTS[self.scheme] else f"{self.host}:{self.port}"


def check_url(url: str, private: str) -> None:
    """Check a URL without DNS, for a request: a name server that is silent must not hold its thread.

    `Invalid` (URL_REFUSED) names the broken rule. `private`: networks that may be called (CIDR, separated by spaces).
    """
    parts, port = _parse(url)
    host = str(parts.hostname)
    networks = _networks(private)
    addresses = _addresses_in(host)
    if addresses or not networks:  # else the address of the name decides, when an event is sent
        _check_addresses(parts.scheme, host, port, addresses, networks)


def resolve_target(url: str, private: str) -> WebhookAddress:
    """Resolve and check a URL. `Invalid` (URL_REFUSED) as `check_url`."""
    parts, port = _parse(url)
    host = str(parts.hostname)
    addresses = _addresses(host, port)
    _check_addresses(parts.scheme, host, port, addresses, _networks(private))
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return WebhookAddress(parts.scheme, host, port, str(addresses[0]), path)


def _parse(url: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as e:
        raise _refused("it is not a URL") from e
    if parts.scheme not in PORTS or not parts.hostname:
        raise _refused("it does not begin with https:// and a host")
    if parts.username is not None or parts.password is not None:
        raise _refused("it holds a user name or a password")
    if any(ord(letter) < 0x21 or ord(letter) > 0x7E or letter == "\\" for letter in url):
        raise _refused("it holds a space, a backslash or a character outside ASCII")
    if "#" in url:
        raise _refused("it holds a fragment (#…), which no server gets")
    if parts.netloc.endswith(":") or parts.hostname.endswith("."):
        raise _refused("its host ends with ':' or '.'")
    if port == 0:
        raise _refused("port 0 cannot be called")
    if not _addresses_in(parts.hostname) and not _is_host_name(parts.hostname):
        raise _refused(f"{parts.hostname[:100]!r} is no name of a host")
    return parts, port or PORTS[parts.scheme]


def _is_host_name(host: str) -> bool:
    """Whether a name server can be asked for it."""
    return len(host) <= 253 and all(_LABEL.match(label) for label in host.split("."))


def _check_addresses(scheme: str, host: str, port: int, addresses: list[Address], networks: list[Network]) -> None:
    """Check that each address is in an allowed private network, or public and called by https on a usual port."""
    allowed = [address for address in addresses if any(address in network for network in networks)]
    internal = [address for address in addresses if address not in allowed and not _is_public(address)]
    if internal:
        subject = host if host == str(internal[0]) else f"{host} is {internal[0]}, which"
        raise _refused(f"{subject} is not a public address")
    if addresses and len(allowed) == len(addresses):
        return
    if scheme == "http":
        raise _refused("it is not https")
    if port not in PUBLIC_PORTS:
        raise _refused(f"port {port} of a public host: use {' or '.join(map(str, PUBLIC_PORTS))}")


def _addresses_in(host: str) -> list[Address]:
    """Return the address that a host is in itself, in any notation that systems accept; none for a name."""
    if host.rstrip(".").endswith("localhost"):
        return [ipaddress.ip_address("127.0.0.1")]
    with suppress(OSError):
        return [ipaddress.IPv4Address(socket.inet_aton(host))]
    with suppress(ValueError):
        return [ipaddress.ip_address(host.partition("%")[0])]
    return []


def _addresses(host: str, port: int) -> list[Address]:
    lookup: Future[list[tuple[Any, ...]]] = Future()
    if not _lookups.acquire(blocking=False):
        raise _refused(f"{host[:100]!r} is not looked up: {LOOKUPS_LIMIT} other lookups are waiting")
    threading.Thread(target=_look_up, args=(host, port, lookup), name="lookup", daemon=True).start()
    try:
        infos = lookup.result(LOOKUP_SECONDS)
    except TimeoutError as e:
        raise _refused(f"{host[:100]!r}: its name servers do not respond within {LOOKUP_SECONDS:g} seconds") from e
    except (OSError, UnicodeError) as e:
        raise _refused(f"{host[:100]!r} has no address") from e
    return [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in infos]


def _look_up(host: str, port: int, lookup: Future[list[tuple[Any, ...]]]) -> None:
    """Resolve a host. The resolver cannot be interrupted, so the thread ends when it gives up."""
    try:
        lookup.set_result(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
    except Exception as e:  # raised again by `_addresses`
        lookup.set_exception(e)
    finally:
        _lookups.release()


def _networks(text: str) -> list[Network]:
    return [ipaddress.ip_network(word) for word in text.split()]


def _is_public(address: Address) -> bool:
    """Python calls fec0::/10 global, which is deprecated and still in use internally, and early releases more."""
    internal = ("is_multicast", "is_reserved", "is_unspecified", "is_site_local")
    return all(
        part.is_global
        and not any(getattr(part, kind, False) for kind in internal)
        and not any(part in network for network in _NOT_PUBLIC)
        for part in _with_embedded(address)
    )


def _with_embedded(address: Address) -> list[Address]:
    """Return the addresses to check: the address and each IPv4 address that it embeds."""
    embedded: list[Address] = []
    if isinstance(address, ipaddress.IPv6Address):
        candidates = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            candidates.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        embedded = [part for part in candidates if part is not None]
        if address.ipv4_mapped is not None or address in _NAT64:
            return embedded  # the outer address itself is never global
    return [address, *embedded]


def _refused(message: str) -> Invalid:
    findings = [Finding("url.refused", "url", message)]
    return Invalid("URL_REFUSED", f"url: {message}", findings=findings, next_step=_NEXT_STEP)
