"""`Flow`: a line on which a byte comes now and then is a broken one, though no pause is long enough to time out.

Invariants
- Less than `LEAST_BYTES` a second over `READ_SECONDS` ends the request as a timeout does: it is taken up again.
"""

from __future__ import annotations

import time

import httpx

from registry.client import sockets

LEAST_BYTES = 2**10


class Flow:
    """Of one request or answer, told of its bytes as they move."""

    def __init__(self, url: str) -> None:
        self._request = httpx.Request("GET", url)
        self._since: float | None = None
        self._bytes = 0

    def moved(self, count: int) -> None:
        """`httpx.ReadTimeout` where that is too little for too long, counted from the first byte on."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        self._bytes += count
        seconds = now - self._since
        if seconds < sockets.READ_SECONDS:
            return
        if self._bytes < LEAST_BYTES * seconds:
            message = f"only {self._bytes} bytes moved in {seconds:.0f} seconds"
            raise httpx.ReadTimeout(message, request=self._request)
        self._since, self._bytes = now, 0
