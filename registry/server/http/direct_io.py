"""`Lane`: a short way for the bytes of one request or answer, past the HTTP server, from socket to disk and back.

An HTTP server in Python copies a body four times and wakes its event loop for each 64 KiB. `adapter serve` therefore
offers each request its socket as the ASGI extension `NAME`; a server that offers none works as well, only slower.

    body      begin() → read_into(sink.write) in a thread → end()      the rest, if any, comes by receive()
    answer    http.response.start → wrote(…) → send_file(…) in a thread      the rest, if any, goes by send()

Invariants
- A lane is used for whole megabytes that move now: a peer that pauses for `IDLE_SECONDS` goes back to the event loop,
  so that slow ones hold no thread; and `SLOTS` bounds the threads in all.
- Nothing depends on a lane being there: not over TLS, not in process, not under another ASGI server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

NAME = "registry.lane"
SLOTS = 16
IDLE_SECONDS = 1.0
FROM_BYTES = 2**18
"""Less than this is not worth a change of threads."""


class Lane(Protocol):
    """One request's socket. `begin`, `end` and `enter` run on the event loop, the others in a thread."""

    def begin(self) -> bytes | None:
        """Stop the server from reading, and give what it has read of the body. None if there is no slot now."""
        ...

    def read_into(self, write: Callable[[memoryview], None], count: int) -> int:
        """Read at most `count` more bytes of the body; fewer when the peer pauses. `ConnectionError` if it leaves."""
        ...

    def end(self, count: int, whole: bool) -> None:
        """`count` bytes of the body were read; `whole` says that it is complete. The server goes on from there."""
        ...

    def break_off(self) -> None:
        """Nobody knows how much of the body was read: the connection ends with the answer."""
        ...

    async def enter(self) -> bool:
        """Wait until what the server has written is sent. False if there is no slot now."""
        ...

    def send_file(self, descriptor: int, start: int, count: int) -> int:
        """Send at most `count` bytes of an open file; fewer when the peer pauses or leaves."""
        ...

    def leave(self, count: int) -> None:
        """`count` bytes of the answer's body were sent. The server goes on from there."""
        ...


def of(scope: Mapping[str, Any]) -> Lane | None:
    lane: Lane | None = scope.get("extensions", {}).get(NAME)
    return lane
