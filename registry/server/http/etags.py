"""Conditional requests: whether an If-None-Match header names an ETag."""

from __future__ import annotations


def etag_matches(if_none_match: str, etag: str) -> bool:
    """Whether the header holds this ETag, weak or strong.

    >>> etag_matches('W/"b", "a"', '"a"')
    True
    """
    return etag in (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
