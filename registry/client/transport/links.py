"""Which addresses a client talks to: what a link or a redirect may lead to, and where a token may go.

A registry may be hostile. Its links must not lead a client from https to http, nor to services of the client's own
machine or network segment (cloud metadata), unless the registry is there itself. The address is checked again when the
connection is made (`check_peer`), because a name may have another one by then. A proxy connects by its own rules.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urljoin, urlsplit

import httpx

from registry.client.transport.responses import wrong_answer
from registry.errors import Invalid

_METADATA = frozenset({ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")})
"""Cloud metadata services that are at no link-local address."""


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of a URL."""
    parsed = httpx.URL(url)
    return parsed.scheme, parsed.host, parsed.port


def followed(base: str, link: str, registry_url: str, *, in_process: bool) -> str:
    """The absolute URL of a link or redirect. `Corrupt` (ANSWER_INVALID) for one that must not be followed.

    `in_process`: the registry is in this process, so local addresses are its own.
    """
    try:
        target = urljoin(base, link)
        parsed, _ = httpx.URL(target), urlsplit(target).port
    except (ValueError, httpx.InvalidURL) as e:
        shown = link.partition("?")[0][:200]
        raise wrong_answer(f"the registry links to {shown!r}, which is not a URL") from e
    if origin(target) == origin(registry_url):
        return target
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise wrong_answer(f"the registry links to {_shown(parsed)}; only http and https are followed")
    if parsed.scheme == "http" and httpx.URL(registry_url).scheme == "https":
        raise wrong_answer(f"the registry at {registry_url} links to {_shown(parsed)}; https never leads to http")
    if not in_process and is_local(parsed.host) and not is_local(httpx.URL(registry_url).host):
        raise wrong_answer(f"the registry links to {_shown(parsed)}, an address of this machine or network segment")
    return target


def check_peer(url: str, address: str, registry_url: str) -> None:
    """`Corrupt` (ANSWER_INVALID) if a connection for a link leads to this machine, but not one for the registry."""
    if origin(url) == origin(registry_url) or not is_local_address(address):
        return
    if not is_local(httpx.URL(registry_url).host):
        raise wrong_answer(f"the registry links to {_shown(httpx.URL(url))}, which is {address} now")


def check_token_target(url: str) -> None:
    """`Invalid` (SETTING_INVALID) if a token for this URL would be sent unencrypted to another machine."""
    parsed = httpx.URL(url)
    if parsed.scheme == "http" and not is_local(parsed.host):
        raise Invalid(
            "SETTING_INVALID",
            f"a token is not sent over plain http to {parsed.host}: everyone on the way could read it",
            next_step="use https, or accept the risk with `adapter login --insecure` or ADAPTER_INSECURE=1",
        )


def is_local(host: str) -> bool:
    """Whether a host is, or resolves to, a loopback, link-local or metadata address."""
    try:
        found_addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return any(is_local_address(str(info[4][0])) for info in found_addresses)


def is_local_address(text: str) -> bool:
    """Whether an address is a loopback, link-local or metadata address."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    return address.is_loopback or address.is_link_local or address.is_unspecified or address in _METADATA


def _shown(url: httpx.URL) -> str:
    """Without its query, which holds a signature."""
    return str(url.copy_with(query=None))[:200]
