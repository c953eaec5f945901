"""Conditional and range requests (RFC 9110): `Cache-Control`, ETags, and which part of a file a response holds."""

import re
from dataclasses import dataclass

from registry.digest import Digest
from registry.names import Selector

IMMUTABLE = "private, max-age=31536000, immutable"
"""For what never changes: a version by number or digest, a full tile."""
REVALIDATE = "private, no-cache"


def cache_control(selector: Selector) -> str:
    """Return `Cache-Control` of a response about a version. Only an alias can move."""
    return IMMUTABLE if isinstance(selector, int | Digest) else REVALIDATE


def etag_matches(if_none_match: str, etag: str) -> bool:
    """Whether the header holds this ETag, weak or strong.

    >>> etag_matches('W/"b", "a"', '"a"')
    True
    """
    return etag in (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))


BYTES_HEADERS = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"}
"""Headers of every response with bytes that someone pushed: a browser must not run them."""
LINK_HEADERS = {
    **BYTES_HEADERS,
    "Cache-Control": "private, no-store",
    "Content-Disposition": "attachment",
    "Content-Type": "application/octet-stream",
}
"""Headers of the response to a link."""
RANGES_LIMIT = 8
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})\Z")


@dataclass(frozen=True, slots=True)
class Part:
    """The bytes of a response: `length` of them from `start` on, and the headers that say so."""

    status: int
    start: int
    length: int
    headers: dict[str, str]


def select_part(range_header: str, if_range: str | None, etag: str, size_bytes: int) -> Part:
    """Select the requested part. A Range that is not one plain range is ignored; many ranges are refused (416)."""
    if range_header.count(",") >= RANGES_LIMIT:
        return _unsatisfiable(size_bytes)
    match = _RANGE.match(range_header)
    if not match or (if_range or etag) != etag:
        return Part(200, 0, size_bytes, {"Content-Length": str(size_bytes), "Accept-Ranges": "bytes"})
    start, length = _bounds(match[1], match[2], size_bytes)
    if length <= 0:
        return _unsatisfiable(size_bytes)
    content_range = f"bytes {start}-{start + length - 1}/{size_bytes}"
    headers = {"Content-Range": content_range, "Content-Length": str(length), "Accept-Ranges": "bytes"}
    return Part(206, start, length, headers)


def _unsatisfiable(size_bytes: int) -> Part:
    return Part(416, 0, 0, {"Content-Range": f"bytes */{size_bytes}"})


def _bounds(first: str, last: str, size_bytes: int) -> tuple[int, int]:
    """Start and length of `bytes=first-last`; a length of 0 or less cannot be satisfied."""
    if not first:
        length = min(int(last or 0), size_bytes)
        return size_bytes - length, length
    start, end = int(first), min(int(last or size_bytes), size_bytes - 1)
    return start, end - start + 1
