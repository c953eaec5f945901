"""Requests and responses over HTTP: the `Transport` that sends them, and the shapes and limits that its kinds share.

`HttpTransport` (http_transport.py) has sockets, `InProcess` (in_process.py) an application in the same process, and
`Connection` (connection.py) adds the token, retries and redirects to either.
"""

import email.message
import io
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol
from urllib.parse import urlsplit

from registry.errors import Corrupt, Invalid
from registry.filesystem import read_at

BUFFER_BYTES = 2**20
READ_SECONDS = 60.0
LEAST_BYTES_PER_SECOND = 2**10
"""A body that moves more slowly than this over `READ_SECONDS` ends as a timeout does."""
RESPONSE_LIMIT_BYTES = 32 * 2**20
"""Limit of one response of the registry that is no file; lists of a whole base have `LIST_LIMIT_BYTES`."""
LIST_LIMIT_BYTES = 256 * 2**20
ERROR_LIMIT_BYTES = 2**20
"""Limit of a response to a transfer of a file."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})

DEADLINE: ContextVar[float] = ContextVar("DEADLINE", default=math.inf)
"""When the requests of this thread end at the latest, by `time.monotonic`; set by `deadline`."""

Advance = Callable[[int], None]
Take = Callable[[memoryview], None]


def invalid_response(message: str, code: str = "RESPONSE_INVALID", *, next_step: str = "") -> Corrupt:
    """Return the error for a response that the client must not use."""
    return Corrupt(code, message, next_step=next_step or "check the registry's URL, and proxies that change responses")


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """End all requests of this thread within these seconds, their repetitions included."""
    token = DEADLINE.set(min(DEADLINE.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        DEADLINE.reset(token)


class TransportError(Exception):
    """A request got no whole response. `broke`: the connection failed, as connections do while a registry restarts."""

    def __init__(self, message: str, url: str, *, broke: bool = False) -> None:
        super().__init__(message)
        self.url, self.broke = url, broke


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response with its body, or with an empty one if the body was streamed. `headers` ignores case."""

    url: str = field(repr=False)  # a store's is a presigned one
    status: int
    headers: email.message.Message
    content: bytes = field(default=b"", repr=False)

    @property
    def is_error(self) -> bool:
        """Whether the status says that the request failed."""
        return self.status >= 400

    @property
    def location(self) -> str:
        """Where a redirect leads; empty for another response."""
        return self.headers.get("Location", "") if self.status in REDIRECTS else ""

    def json(self) -> Any:
        """Return the body as a JSON value. `ValueError` if it is not JSON, or nested too deep."""
        try:
            return json.loads(self.content)
        except RecursionError as e:
            raise ValueError("nested too deep") from e


class ResponseStream(ABC):
    """A response whose body is still to be read. Close it."""

    def __init__(self, url: str, status: int, headers: email.message.Message) -> None:
        self.head = HttpResponse(url, status, headers)

    @abstractmethod
    def chunks(self) -> Iterator[memoryview | bytes]:
        """Yield the body. A chunk is valid until the next one. `TransportError`."""

    @abstractmethod
    def close(self) -> None:
        """End the exchange. The body need not be read."""

    def set_deadline(self, until: float) -> None:  # noqa: B027 - an option
        """Limit the time in which the body arrives as a whole, by `time.monotonic`."""

    def read(self, limit_bytes: int = ERROR_LIMIT_BYTES) -> HttpResponse:
        """Read the body and close. `Corrupt` (RESPONSE_INVALID) over the limit."""
        body, response = bytearray(), self.head
        try:
            for chunk in self.chunks():
                body += chunk
                if len(body) > limit_bytes:
                    parts = urlsplit(response.url)
                    raise invalid_response(
                        f"the response to {parts.path} of {parts.hostname} is over {limit_bytes} bytes"
                    )
        finally:
            self.close()
        return HttpResponse(response.url, response.status, response.headers, bytes(body))


@dataclass(frozen=True, slots=True)
class FileRange:
    """A request body: `length` bytes of a file. `advance` is called with each step."""

    file: io.FileIO
    start: int
    length: int
    advance: Advance

    def __iter__(self) -> Iterator[bytes]:
        start, end = self.start, self.start + self.length
        while start < end:
            piece = read_at(self.file.fileno(), min(BUFFER_BYTES, end - start), start)
            if not piece:
                self.raise_truncated()
            yield piece
            start += len(piece)
            self.advance(len(piece))

    def raise_truncated(self) -> NoReturn:
        """Raise the error for a file that became shorter while it was sent."""
        raise Invalid("FOLDER_INVALID", f"{self.file.name} was truncated while it was pushed; wait for its writer")


class Transport(Protocol):
    """Sends requests. Thread-safe."""

    def open(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Iterable[bytes], *, seconds: float
    ) -> ResponseStream:
        """Send a request and return the start of its response. `seconds`: how long it may take. `TransportError`."""

    def close(self) -> None:
        """Close idle connections."""


class ThroughputGuard:
    """Ends a request whose body moves now and then but too slowly, though no pause is long enough to time out."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._since: float | None = None
        self._bytes = 0

    def moved(self, count: int) -> None:
        """Count bytes, from the first on. `TransportError` if they are too few."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        self._bytes += count
        seconds = now - self._since
        if seconds < READ_SECONDS:
            return
        if self._bytes < LEAST_BYTES_PER_SECOND * seconds:
            raise TransportError(f"only {self._bytes} bytes moved in {seconds:.0f} seconds", self._url)
        self._since, self._bytes = now, 0
