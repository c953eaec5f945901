"""`LinkRequest`: a request with a signed link whose whole head is there, read before anything is taken from the socket.

Only a plain request is one: what is unusual in any way goes to the application, which answers it or says what is wrong.
So this reader needs to know little of HTTP, and two readers of one request never disagree about where it ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from registry.api import LINKS
from registry.server.storage.signed_links import LinkSigner, SignedLink

LINK_HEAD_LIMIT_BYTES = 16 * 2**10
"""A longer head is for the application, which has a limit of its own (`connections.HEAD_LIMIT_BYTES`)."""
_HEAD = re.compile(
    rb"(GET|PUT) (/[!-~]{1,1000}) HTTP/1\.([01])\r\n"
    rb"((?:[!#-'*+.^_`|~0-9A-Za-z-]{1,100}:[ -~\t]{0,4000}\r\n){1,100})\r\n"
)
_BEGINNINGS = tuple(f"{method} {LINKS}".encode() for method in ("GET", "PUT"))
_UNUSUAL = frozenset({"transfer-encoding", "expect", "upgrade", "if-none-match", "if-match", "trailer"})


@dataclass(frozen=True, slots=True)
class LinkRequest:
    """`head_bytes`: length of the head, after which the body of a PUT begins."""

    method: str
    link: SignedLink
    headers: dict[str, str]
    head_bytes: int
    keeps_alive: bool


def read_request(head: bytes, signer: LinkSigner) -> LinkRequest | None:
    """Read the request at the beginning of these bytes. None if it is for the application."""
    if not head.startswith(_BEGINNINGS):
        return None
    match = _HEAD.match(head)
    if match is None:
        return None
    lines = [line.partition(":") for line in match[4].decode("ascii").splitlines()]
    headers = {name.lower(): value.strip() for name, _, value in lines}
    if len(headers) < len(lines) or "host" not in headers or not _UNUSUAL.isdisjoint(headers):
        return None
    method = match[1].decode()
    link = signer.find(method, match[2].decode())
    if link is None or headers.get("content-length") != (str(link.size_bytes) if method == "PUT" else None):
        return None
    keeps_alive = match[3] == b"1" and "close" not in headers.get("connection", "").lower()
    return LinkRequest(method, link, headers, match.end(), keeps_alive)
