"""The stream of a live page: the page again whenever something was committed that changes what this visitor sees.

- A live page is rendered by its own route, with the visitor's session, rights and limits of that moment. So a stream
  shows nothing that a reload would not show, not even that other tenants are at work.
- Back-pressure: a page is rendered at most every `LOOK_SECONDS`, and only after the browser has taken the one before. A
  token has a limited number of streams, together with those of the event API, and each rendering counts as a request.
- A stream ends after `STREAM_SECONDS`, with the session, or with the server. Browsers open it again.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from registry.errors import Invalid, Unavailable
from registry.server.database import db
from registry.server.http.services import services_of
from registry.server.pages.rendering import PRIVATE, SECURITY_HEADERS, create_router
from registry.server.pages.sessions import visitors
from registry.server.pages.sessions.inner_requests import request_page

router = create_router()
LIVE_PAGES = ("/fleet", "/jobs", "/campaigns")
PATH_LIMIT = 2000
LOOK_SECONDS = 2.0
_AGE = re.compile('(<time datetime="[^"]*")[^<]*')
"""An age changes with the clock: that is no news, and would tell that others have committed something."""
QUIET_SECONDS = 15
STREAM_SECONDS = 900


async def hold_stream(request: Request) -> AsyncIterator[None]:
    """Count a stream of the visitor's token until the whole response is sent. `Unauthenticated` without a session."""
    visitor = await run_in_threadpool(_read_visitor, request)
    with services_of(request).stream_limiter.hold(visitor.actor.token_id):
        yield


def _read_visitor(request: Request) -> visitors.Visitor:
    with db.session(services_of(request).engine, write=False) as session:
        return visitors.require(visitors.find_visitor(request, session))


@router.get("/live")
async def stream_page(
    request: Request, _slot: Annotated[None, Depends(hold_stream)], page: Annotated[str, Query(max_length=PATH_LIMIT)]
) -> StreamingResponse:
    """Stream a page as server-sent events: `page` with its `main` element, and `end` when it cannot be shown."""
    path, _, query = page.partition("?")
    if not _is_live(path):
        raise Invalid("REQUEST_INVALID", f"page: must begin with one of {', '.join(LIVE_PAGES)}")
    headers = SECURITY_HEADERS | PRIVATE | {"X-Accel-Buffering": "no"}
    return StreamingResponse(_follow(request, path, query), headers=headers, media_type="text/event-stream")


def _is_live(path: str) -> bool:
    return any(path == page or path.startswith(f"{page}/") for page in LIVE_PAGES) and path.isascii()


async def _follow(request: Request, path: str, query: str) -> AsyncIterator[str]:
    services = services_of(request)
    until, quiet_until = time.monotonic() + STREAM_SECONDS, 0.0
    stamp, sent = object(), ""
    yield "retry: 5000\n\n"
    while time.monotonic() < until and not services.audit_log.closing.is_set():
        now = _read_stamp(request)
        if now is None or now != stamp:
            stamp = now
            status, text = await _render(request, path, query)
            if status != 200:
                yield "event: end\ndata:\n\n"
                return
            digest = hashlib.sha256(_AGE.sub(r"\1", text).encode()).hexdigest()
            if digest != sent:
                sent, quiet_until = digest, time.monotonic() + QUIET_SECONDS
                yield "\n".join(["event: page", *(f"data: {line}" for line in text.splitlines()), "", ""])
        if time.monotonic() >= quiet_until:
            quiet_until = time.monotonic() + QUIET_SECONDS
            yield ": nothing new\n\n"
        await asyncio.sleep(LOOK_SECONDS)


def _read_stamp(request: Request) -> object | None:
    try:
        stamp = services_of(request).freshness.stamp()
    except Unavailable:
        return None
    return stamp


async def _render(request: Request, path: str, query: str) -> tuple[int, str]:
    """Return the status and the `main` element of a page, requested as the browser would."""
    page = await request_page(request, path, query)
    text = bytes(page.body).decode()
    start, end = text.find("<main"), text.rfind("</main>")
    return page.status_code, text[start:end] + "</main>" if 0 <= start < end else ""
