"""`Target`: where a URL really leads, decided once and connected to as decided. The guard against being sent inside.

Invariants
- Only public addresses are called, by https; private networks that the operator names may be called, by http too.
- A name is resolved once for each request; every address that it has must be allowed, and the connection goes to the
  address that was looked at, so a name that changes its mind between look and call changes nothing.
- IPv6 that carries an IPv4 address (mapped, 6to4, Teredo, NAT64) is judged by both.
- No user-info, no redirect, no proxy of the environment.

Example
    >>> target.find("https://hooks.example.com/in", "").address
    '93.184.216.34'
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from registry.errors import Invalid, Reason

PORTS = {"https": 443, "http": 80}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Target:
    """One place to call: the address that was allowed, and what to say there."""

    scheme: str
    host: str
    port: int
    address: str
    path: str


def find(url: str, private: str) -> Target:
    """Where to call for this URL. `Invalid` (URL_REFUSED) names the rule. `private`: networks, with spaces between."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as e:
        raise _refused("it is no URL") from e
    if parts.scheme not in PORTS or not parts.hostname:
        raise _refused("it does not begin with https:// and a host")
    if parts.username is not None or parts.password is not None:
        raise _refused("it holds a user name or a password")
    if any(ord(letter) < 0x21 or ord(letter) > 0x7E or letter == "\\" for letter in url):
        raise _refused("it holds a space, a backslash or a character outside ASCII")
    allowed = _networks(private)
    found = _addresses(parts.hostname, port or PORTS[parts.scheme])
    inside = [address for address in found if any(address in network for network in allowed)]
    wrong = [address for address in found if address not in inside and not _public(address)]
    if wrong:
        raise _refused(f"{parts.hostname} is {wrong[0]}, which is no public address")
    if parts.scheme == "http" and len(inside) != len(found):
        raise _refused("it is not https")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, parts.hostname, port or PORTS[parts.scheme], str(found[0]), path)


def _addresses(host: str, port: int) -> list[Address]:
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as e:
        raise _refused(f"{host[:100]!r} has no address") from e
    return [ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers]


def _networks(text: str) -> list[Network]:
    try:
        return [ipaddress.ip_network(word) for word in text.split()]
    except ValueError as e:
        raise Invalid("SETTING_INVALID", f"REGISTRY_WEBHOOK_PRIVATE: {e}") from e


def _public(address: Address) -> bool:
    return all(
        one.is_global and not (one.is_multicast or one.is_reserved or one.is_unspecified or _is_of_a_site(one))
        for one in _all_of(address)
    )


def _is_of_a_site(address: Address) -> bool:
    """fec0::/10, given up and still in use inside; Python calls it global."""
    return isinstance(address, ipaddress.IPv6Address) and address.is_site_local


def _all_of(address: Address) -> list[Address]:
    """The address and every IPv4 address that it carries."""
    found: list[Address] = []
    if isinstance(address, ipaddress.IPv6Address):
        carried = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            carried.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        found = [inner for inner in carried if inner is not None]
        if address.ipv4_mapped is not None or address in _NAT64:
            return found  # the carrier itself is never "global"
    return [address, *found]


def _refused(message: str) -> Invalid:
    detail = f"url: {message}"
    reasons = [Reason("url.refused", "url", message)]
    return Invalid("URL_REFUSED", detail, reasons=reasons, next_step="name a public https URL")
