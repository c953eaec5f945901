"""Where a registry's links and redirects may lead: not from https to http, nor to services of the client's own machine.

A registry may be hostile. Its links never reach cloud metadata or the network segment of the client, and this machine
only if the registry is on it: behind a tunnel, every registry is. `Connection` checks the address when it connects.
"""

import functools
import ipaddress
import os
import re
import socket
from urllib.parse import urljoin, urlsplit

from registry.api import PREFIX
from registry.client.transport import invalid_response

_METADATA = frozenset({ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")})
"""Cloud metadata services that are at no link-local address."""
VISIBLE_ASCII = re.compile(r"[!-~]+")


@functools.lru_cache(maxsize=64)
def origin(url: str) -> tuple[str, str, int | None]:
    """Return scheme, host and port of a URL."""
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname or "", parts.port or default


def resolve_link(base: str, link: str, registry_url: str, *, in_process: bool) -> str:
    """Return the absolute URL of a link or redirect. `Corrupt` (RESPONSE_INVALID) for one that must not be followed.

    `in_process`: the registry is in this process, so local addresses are its own.
    """
    try:
        if link.startswith(f"{PREFIX}/") and origin(base) == origin(registry_url):
            target = registry_url + link  # it may be below a path
        else:
            target = urljoin(base, link)
        scheme, host, _ = origin(target)
        if not VISIBLE_ASCII.fullmatch(target):
            raise ValueError("it holds a character that no URL has")
    except ValueError as e:
        raise invalid_response(f"the registry links to {shown(link)!r}, which is not a URL") from e
    own_scheme, own_host, _ = origin(registry_url)
    if origin(target) == origin(registry_url):
        return target
    if scheme not in ("http", "https") or not host:
        raise invalid_response(f"the registry links to {shown(target)}; only http and https are followed")
    if scheme == "http" and own_scheme == "https":
        raise invalid_response(f"the registry at {registry_url} links to {shown(target)}; https never leads to http")
    if not in_process and not all(may_follow(address, own_host) for address in _addresses_of(host)):
        raise invalid_response(f"the registry links to {shown(target)}, an address of this machine or network segment")
    return target


def accepts_plain_http(variable: str = "ADAPTER_INSECURE") -> bool:
    """Whether this environment variable lets secrets go over plain http to other machines."""
    return os.environ.get(variable, "") not in ("", "0")


def is_this_machine(host: str) -> bool:
    """Whether a host is a loopback address, or resolves to nothing else. A link-local address is another machine's."""
    addresses = _addresses_of(host)
    return bool(addresses) and all(map(is_loopback, addresses))


def may_follow(text: str, own_host: str) -> bool:
    """Whether a link of a registry on this host may lead to an address, which is not the registry's own."""
    address = _parse_address(text)
    if address.is_link_local or address in _METADATA:
        return False
    return not is_loopback(text) or any(map(is_loopback, _addresses_of(own_host)))


def _addresses_of(host: str) -> list[str]:
    """The addresses that a host is or resolves to; none for one that does not resolve."""
    try:
        return [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []


def is_loopback(text: str) -> bool:
    """Whether an address is a loopback address, or stands for all of this machine's."""
    address = _parse_address(text)
    return address.is_loopback or address.is_unspecified


def _parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped: ipaddress.IPv4Address | None = getattr(address, "ipv4_mapped", None)
    return mapped or address


def shown(url: str) -> str:
    """Return a URL without its query, which holds a signature."""
    return url.partition("?")[0][:200]
