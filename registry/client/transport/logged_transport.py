"""`LoggedTransport`: reports each request with its status and time."""

import time
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

from registry.client.transport import ResponseStream, Transport, TransportError


class LoggedTransport:
    """Sends by another transport, and calls `say` with `GET https://host/path 200 12 ms` for each request.

    A query is left out: that of a signed link is a secret.
    """

    def __init__(self, transport: Transport, say: Callable[[str], None]) -> None:
        self._transport, self._say = transport, say

    def open(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Iterable[bytes], *, seconds: float
    ) -> ResponseStream:
        """Send a request and report it once its response begins, or fails to."""
        started, location = time.monotonic(), urlsplit(url)._replace(query="", fragment="").geturl()
        result = "failed"
        try:
            stream = self._transport.open(method, url, headers, body, seconds=seconds)
            result = str(stream.head.status)
        except TransportError as e:
            result = f"failed: {e}"
            raise
        finally:
            self._say(f"{method} {location} {result} {1000 * (time.monotonic() - started):.0f} ms")
        return stream

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()
