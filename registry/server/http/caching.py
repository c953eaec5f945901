"""Caching of answers: `Cache-Control`, and conditional requests by ETag."""

from __future__ import annotations

from registry.digest import Digest
from registry.names import Selector

IMMUTABLE = "private, max-age=31536000, immutable"
"""For what never changes: a version by number or digest, a full tile."""
REVALIDATE = "private, no-cache"


def cache_control(selector: Selector) -> str:
    """Return `Cache-Control` of an answer about a version. Only an alias can move."""
    return IMMUTABLE if isinstance(selector, int | Digest) else REVALIDATE


def etag_matches(if_none_match: str, etag: str) -> bool:
    """Whether the header holds this ETag, weak or strong.

    >>> etag_matches('W/"b", "a"', '"a"')
    True
    """
    return etag in (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
