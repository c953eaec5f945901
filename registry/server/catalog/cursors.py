"""Cursors of pages: a number that the last page returned."""

from __future__ import annotations

from registry.errors import invalid_cursor


def parse_cursor(cursor: str, *, digits: int = 9) -> int:
    """The number in a cursor, 0 for an empty one. `Invalid` (REQUEST_INVALID) for anything that no page returned."""
    if cursor and not (cursor.isascii() and cursor.isdigit() and len(cursor) <= digits):
        raise invalid_cursor()
    return int(cursor or 0)
