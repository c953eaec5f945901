"""`LinkRequest`: a request with a signed link, read from the first bytes of a connection.

What has an odd framing goes to the application, which says what is wrong. So this reader needs to know little of HTTP,
and two readers of one request never disagree about where it ends.
"""

import re
from dataclasses import dataclass

from registry.api import LINKS
from registry.server.storage.signed_links import LinkSigner, SignedLink

LINK_HEAD_LIMIT_BYTES = 16 * 2**10
"""A longer head is for the application, which has a limit of its own (`connections.HEAD_LIMIT_BYTES`)."""
LINK_BEGINNINGS = tuple(f"{method} {LINKS}".encode() for method in ("GET", "PUT"))
_HEAD = re.compile(
    rb"(GET|PUT) (/[!-~]{1,1000}) HTTP/1\.([01])\r\n"
    rb"((?:[!#-'*+.^_`|~0-9A-Za-z-]{1,100}:[ -~\t\x80-\xff]{0,8000}\r\n){1,100})\r\n"
)
_ONCE = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect", "range", "if-range"})
"""Headers that say where the request ends or what its response is."""


@dataclass(frozen=True, slots=True)
class LinkRequest:
    """`head_bytes`: length of the head, after which the body of a PUT begins."""

    method: str
    link: SignedLink
    headers: dict[str, str]
    head_bytes: int
    keeps_alive: bool


def may_become_link(data: bytes) -> bool:
    """Whether these bytes are the beginning of a head that may have a link, and the rest is still to come."""
    is_beginning = any(data.startswith(first) or first.startswith(data) for first in LINK_BEGINNINGS)
    return is_beginning and len(data) < LINK_HEAD_LIMIT_BYTES and b"\r\n\r\n" not in data


def read_request(head: bytes, signer: LinkSigner) -> LinkRequest | None:
    """Read the request at the beginning of these bytes. None if it is for the application."""
    if not head.startswith(LINK_BEGINNINGS):
        return None
    match = _HEAD.match(head)
    if match is None:
        return None
    lines = [line.partition(":") for line in match[4].decode("latin-1").split("\r\n")[:-1]]
    pairs = [(name.lower(), value.strip(" \t")) for name, _, value in lines]
    headers = dict(pairs)
    once = [name for name, _ in pairs if name in _ONCE]
    if len(once) > len(set(once)) or "host" not in headers or "transfer-encoding" in headers:
        return None
    method = match[1].decode()
    link = signer.find(method, match[2].decode())
    is_bodied = headers.get("content-length") == (str(link.size_bytes) if link and method == "PUT" else None)
    if link is None or not is_bodied or headers.get("expect", "100-continue").lower() != "100-continue":
        return None
    keeps_alive = match[3] == b"1" and "close" not in headers.get("connection", "").lower()
    return LinkRequest(method, link, headers, match.end(), keeps_alive)
