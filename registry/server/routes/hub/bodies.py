"""Bodies of the Hub API that may have hundreds of megabytes: they wait on disk, not in memory."""

from __future__ import annotations

import mmap
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
from registry.server.http.routing import run_in_store_thread
from registry.server.push import background

Result = TypeVar("Result")


async def with_body(
    request: Request, access: RequireScope, limit_bytes: int, work: Callable[[Actor, Body], Result]
) -> Result:
    """Receive the body, then do this work in a thread, with the rights that the actor has by then.

    `TooLarge` (SIZE_INVALID), `Invalid` for an empty body, `Unavailable` beyond what may wait on disk.
    """
    state = request.app.state
    actor: Actor = request.state.actor
    request.state.unread_body = True
    with tempfile.TemporaryFile() as spool, state.upload_limiter.hold(actor.token_id):
        size_bytes = await spool_body(request, actor, spool, state.disk_budget, limit_bytes)
        request.state.unread_body = False
        try:
            actor = await run_in_threadpool(access.check_again, request)  # the body may take hours
            with state.freshness.during_write(), background.push_in_progress(state.engine):
                return await run_in_store_thread(_work, actor, spool, work)
        finally:
            state.disk_budget.change(actor.shares, -size_bytes)


def _work(actor: Actor, spool: IO[bytes], work: Callable[[Actor, Body], Result]) -> Result:
    if not spool.tell():
        raise Invalid("REQUEST_INVALID", "the body is empty")
    with mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ) as body:
        return work(actor, body)
