"""`Pace`: ends a request whose body does not come: less than 1 KiB a second for as long as the setting says.

Invariants
- Only the time in which the server waits for the sender counts, and only until the body is complete.
- A stalled request holds a connection until then and nothing else: no thread, no transaction.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from registry.errors import Unavailable

Message = MutableMapping[str, Any]
BYTES_PER_SECOND = 1024


class Pace:
    """A `receive` of ASGI that raises `Unavailable` (BODY_STALLED) when the sender is too slow."""

    def __init__(self, receive: Callable[[], Awaitable[Message]], seconds: float) -> None:
        self._receive = receive
        self._seconds = seconds
        self._waited = 0.0
        self._got = 0
        self._complete = False
        self.stalled = False

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds - self._waited):
                message = await self._receive()
        except TimeoutError as e:
            self.stalled = True
            raise Unavailable(
                "BODY_STALLED",
                f"body: less than {BYTES_PER_SECOND} bytes a second came for {self._seconds:g} seconds",
                next_step="send it again; what has arrived whole is not asked for again",
            ) from e
        self._waited += time.monotonic() - began
        self._got += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._got >= BYTES_PER_SECOND * self._seconds:
            self._waited, self._got = 0.0, 0
        return message
