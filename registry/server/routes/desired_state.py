"""The route of the desired state: which versions nodes serving a base should load, with long polling for changes.

Invariants
- Whoever waits holds no thread and no connection, and is asked for its rights again before each answer.
- A waiting request reads the desired state again only after a commit that an event or a verdict records, with one
  statement. Leases of nodes and uses of tokens do not count.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Engine

from registry import names
from registry.api.desired_state import DesiredState
from registry.engines import EngineProfile
from registry.evaluation.verdicts import PROFILE_LIMIT
from registry.roles import Scope
from registry.server.catalog import bases
from registry.server.database import db
from registry.server.evaluation import engine_compat
from registry.server.http import routing
from registry.server.http.dependencies import EngineDep, PullerInThread, RequireScope
from registry.server.resolve_cache.change_counter import ChangeCounter, Counts
from registry.server.resolve_cache.freshness import Freshness
from registry.server.routes.openapi import declarations
from registry.server.serving import desired

router = routing.create_router("serving")

WAIT_LIMIT_SECONDS = 60
LOOK_SECONDS = 0.1
LOOK_ANYWAY_SECONDS = 0.5
"""So often is looked where nobody tells whether anything was committed (PostgreSQL without a follower)."""


class _Reader:
    """Reads for one request, which may wait."""

    def __init__(self, request: Request, engine: Engine, base: str, alias: str, profile: EngineProfile | None) -> None:
        self._request, self._engine = request, engine
        self._base, self._alias, self._asked = names.base_name(base), names.alias(alias), profile

    def whole(self) -> DesiredState:
        actor = RequireScope(Scope.PULL).check_again(self._request)
        with db.session(self._engine, write=False) as session:
            return desired.load(session, actor, self._base, self._alias, self._asked)

    def state(self) -> str:
        actor = RequireScope(Scope.PULL).check_again(self._request)
        with db.session(self._engine, write=False) as session:
            return desired.state_cursor(session, actor, bases.find(session, self._base), self._alias, self._asked)


@router.get("/bases/{base:path}/adapters", response_model=DesiredState, responses=declarations.NOT_MODIFIED)
async def show_desired_state(
    request: Request,
    response: Response,
    _actor: PullerInThread,
    engine: EngineDep,
    base: str,
    alias: Annotated[str, Query(max_length=100)] = "prod",
    asked: Annotated[str, Query(alias="engine", max_length=PROFILE_LIMIT)] = "",
    since: Annotated[str, Query(max_length=100)] = "",
    wait: Annotated[int, Query(ge=0, le=WAIT_LIMIT_SECONDS)] = 0,
    if_none_match: Annotated[str | None, Header(max_length=1000)] = None,
) -> DesiredState | Response:
    """The adapters that nodes of this base model shall serve. With `since` and `wait`, answers when they change."""
    reader = _Reader(request, engine, base, alias, engine_compat.parse_profiles([asked])[0] if asked else None)
    if since and wait:
        await _differs(request, reader, since, time.monotonic() + wait)
    if if_none_match is not None:
        headers = _headers(await run_in_threadpool(reader.state))
        if headers["ETag"] in (tag.strip().removeprefix("W/") for tag in if_none_match.split(",")):
            return Response(status_code=304, headers=headers)
    state = await run_in_threadpool(reader.whole)
    response.headers.update(_headers(state.cursor))
    return state


def _headers(cursor: str) -> dict[str, str]:
    return {"ETag": f'"{cursor}"', "Cache-Control": "private, no-cache"}


async def _differs(request: Request, reader: _Reader, since: str, until: float) -> None:
    freshness: Freshness = request.app.state.freshness
    closing = request.app.state.audit_log.closing
    while not closing.is_set() and time.monotonic() < until:
        stamp, looked_at = freshness.stamp(), time.monotonic()
        beat = await _beat(request, stamp)  # before the cursor: a commit between the two is looked at again
        if await run_in_threadpool(reader.state) != since:
            return
        while not closing.is_set() and time.monotonic() < until:
            await asyncio.sleep(LOOK_SECONDS)
            now = freshness.stamp()
            if now == stamp if now is not None else time.monotonic() - looked_at <= LOOK_ANYWAY_SECONDS:
                continue
            stamp, looked_at = now, time.monotonic()
            if await _beat(request, stamp) != beat:
                break


async def _beat(request: Request, stamp: object | None) -> Counts:
    counter: ChangeCounter = request.app.state.change_counter
    counts = counter.peek(stamp)
    return counts if counts is not None else await run_in_threadpool(counter.read, stamp)
