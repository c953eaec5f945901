"""Bodies of the Hub API that may have hundreds of megabytes: they wait on disk, not in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import IO, TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from registry.errors import Invalid
from registry.hub.operations import Body
from registry.server.actors import Actor
from registry.server.http.dependencies import RequireScope
from registry.server.http.request_body import spool_body
from registry.server.http.routing import run_in_turn
from registry.server.http.services import services_of
from registry.server.push import background

Result = TypeVar("Result")
WINDOW_BYTES = 64 * 2**10


async def with_body(
    request: Request, access: RequireScope, limit_bytes: int, work: Callable[[Actor, Body], Result]
) -> Result:
    """Receive the body, then do this work in a thread, with the rights that the actor has by then.

    `TooLarge` (SIZE_INVALID), `Invalid` for an empty body, `Unavailable` beyond what may wait on disk.
    """
    services = services_of(request)
    actor: Actor = request.state.actor
    request.state.unread_body = True
    with (
        tempfile.TemporaryFile() as spool, services.upload_limiter.hold(actor.token_id),
        services.admission.disk.hold() as reserved,
    ):  # fmt: skip
        size_bytes = await spool_body(request, reserved, spool, limit_bytes)
        request.state.unread_body = False
        if not size_bytes:
            raise Invalid("REQUEST_INVALID", "the body is empty")
        actor = await run_in_threadpool(access.check_again, request)  # the body may take hours
        with services.freshness.during_write(), background.push_in_progress(services.engine):
            return await run_in_turn(request, work, actor, SpooledBody(spool, size_bytes))


class SpooledBody:
    """A body on disk. Parts of it are read when they are needed: a mapped file would count as memory."""

    def __init__(self, file: IO[bytes], size_bytes: int) -> None:
        self._descriptor = file.fileno()
        self._size_bytes = size_bytes

    def __len__(self) -> int:
        return self._size_bytes

    def __getitem__(self, span: slice) -> bytes:
        start, end, _ = span.indices(self._size_bytes)
        return os.pread(self._descriptor, max(end - start, 0), start)

    def find(self, part: bytes, start: int, end: int) -> int:
        """Return where one byte is, or -1."""
        for at in range(start, end, WINDOW_BYTES):
            position = self[at : min(at + WINDOW_BYTES, end)].find(part)
            if position >= 0:
                return at + position
        return -1
