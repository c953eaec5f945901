"""`DirectIO`: moves the bytes of one request between its socket and a file, without the copies of the HTTP server.

`adapter serve` offers each request its socket as the ASGI extension `EXTENSION`. Everything works without it, slower.

    body      begin_body() → read_into(writer.write) in a thread → end_body()           the rest, if any, by receive()
    answer    response.start → begin_answer() → send_file(…) in a thread → end_answer()      the rest, if any, by send()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

EXTENSION = "registry.direct_io"
SLOTS = 16
IDLE_SECONDS = 1.0
MINIMUM_BYTES = 2**18
"""A smaller body is not worth a change of threads."""


class DirectIO(Protocol):
    """The socket of one request. Both `begin_` and `end_body` run on the event loop, the others in a thread."""

    def begin_body(self) -> bytes | None:
        """Stop the server from reading and return what it has read of the body. None if no slot is free."""
        ...

    def read_into(self, write: Callable[[memoryview], None], count: int) -> int:
        """Read up to `count` bytes of the body, fewer if the peer pauses. `ConnectionError` if it disconnects."""
        ...

    def end_body(self, count: int, whole: bool) -> None:
        """Let the server continue after `count` bytes of the body; `whole` if the body is complete."""
        ...

    def abort_body(self) -> None:
        """Close the connection after the answer, because it is unknown how much of the body was read."""
        ...

    async def begin_answer(self) -> bool:
        """Wait until everything that the server has written is sent. False if no slot is free."""
        ...

    def send_file(self, descriptor: int, start: int, count: int) -> int:
        """Send up to `count` bytes of an open file, fewer if the peer pauses or disconnects."""
        ...

    def end_answer(self, count: int) -> None:
        """Let the server continue after `count` bytes of the answer's body."""
        ...


def direct_io_of(scope: Mapping[str, Any]) -> DirectIO | None:
    """Return the socket that the server offers to this request, if any."""
    direct_io: DirectIO | None = scope.get("extensions", {}).get(EXTENSION)
    return direct_io
