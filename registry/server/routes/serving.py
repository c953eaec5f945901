"""Routes of serving: the desired state of the nodes of a base, with long polling, and what nodes report.

- A waiting request holds no thread and no connection. Its rights are checked again before each response.
- The desired state and its cursor are read again only after a commit with an event or a verdict, which one statement
  finds out, and once for all requests of the same reach. Leases of nodes and uses of tokens do not count. One task
  looks for all.
"""

import time
from typing import Annotated, Any

from fastapi import Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from registry import names
from registry.api.operations import serving as operations
from registry.api.serving import DesiredState, FleetNodes, NodeReport, ReportAccepted
from registry.engines import EngineProfile, rulebook
from registry.evaluation.verdicts import PROFILE_LIMIT
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.catalog import base_rows
from registry.server.database import db
from registry.server.evaluation import engine_profiles
from registry.server.http import dependencies as deps
from registry.server.http.changes.freshness import Counts
from registry.server.http.conditional import REVALIDATE, etag_matches
from registry.server.http.documents import JsonBody
from registry.server.http.operation_router import OperationRouter
from registry.server.http.services import services_of
from registry.server.routes.openapi import declarations
from registry.server.serving import desired, reports, status

router = OperationRouter()

WAIT_LIMIT_SECONDS = 60


class _DesiredStateReader:
    """Reads the desired state for one request, with the rights that its actor has then."""

    def __init__(self, request: Request, actor: Actor, base: str, alias: str, profile: EngineProfile | None) -> None:
        self._request, self._actor = request, actor
        self._engine = services_of(request).engine
        self._shared = services_of(request).shared_reads
        self._base, self._alias, self._profile = names.base_name(base), names.alias(alias), profile

    async def read_cursor(self, counts: Counts) -> str:
        """Return the cursor of the state at these counts.

        The actor of a request that waits is read again if access has changed or its token has ended.
        """
        actor = self._actor
        ended = actor.expires_at is not None and actor.expires_at <= db.now()
        if ended or actor.epoch not in (None, counts.access):
            actor = await self.sign_in_again()

        def read() -> str:
            with db.session(self._engine, write=False) as session:
                return desired.state_cursor(
                    session, actor, base_rows.find(session, self._base), self._alias, self._profile
                )

        return await self._shared.get(self._key("cursor", actor), counts, read)

    async def load(self, counts: Counts | None, cursor: str, page: desired.Page) -> DesiredState:
        """Return a page of the state: the first one at these counts and with this cursor, another one as of now."""
        actor = self._actor

        def read() -> DesiredState:
            with db.session(self._engine, write=False) as session:
                return desired.load(session, actor, self._base, self._alias, self._profile, page, cursor=cursor)

        key = (self._key("state", actor), page)
        state = await self._shared.get(key, counts, read)
        self._shared.forget(key)
        return state

    def _key(self, kind: str, actor: Actor) -> object:
        reach = (actor.namespaces_with(Scope.PULL), actor.public, actor.adapters)
        rules = str(rulebook.digest(self._profile.engine)) if self._profile else ""
        return (kind, self._base, self._alias, str(self._profile or ""), rules, reach)

    async def sign_in_again(self) -> Actor:
        """Read the rights of the actor as of now."""
        self._actor = await run_in_threadpool(deps.RequireScope(Scope.PULL).check_again, self._request)
        return self._actor


_UNCHANGED: dict[int | str, dict[str, Any]] = {204: {"description": "The cursor is `since` still: wait again"}}


@router.serves(operations.SHOW_DESIRED_STATE, responses=declarations.NOT_MODIFIED | _UNCHANGED)
async def show_desired_state(
    request: Request,
    response: Response,
    actor: deps.ActorInThreadDep,
    base: str,
    alias: Annotated[str, Query(max_length=100)] = "prod",
    profile: Annotated[str, Query(alias="engine", max_length=PROFILE_LIMIT)] = "",
    since: Annotated[str, Query(max_length=100)] = "",
    wait: Annotated[int, Query(ge=0, le=WAIT_LIMIT_SECONDS)] = 0,
    after: deps.Text = "",
    limit: Annotated[int | None, Query(ge=1, le=desired.WHOLE_LIMIT)] = None,
    if_none_match: Annotated[str | None, Header(max_length=1000)] = None,
) -> DesiredState | Response:
    """Show what nodes of this base model should serve. With `since` and `wait`, 204 unless it changes in that time.

    The pages that follow the first one have no cursor: what changes while they are read is seen with the first one's.
    """
    profiles = engine_profiles.parse_profiles([profile] if profile else [])
    reader = _DesiredStateReader(request, actor, base, alias, next(iter(profiles), None))
    services, page = services_of(request), desired.Page(after, limit)
    if since and wait and not after:
        awaited = (base, alias, profile)
        with services.waits_limiter.hold(actor.token_id), services.waited_limiter.hold(actor.tenant, awaited):
            cursor = await _wait_for_change(request, reader, since, time.monotonic() + wait)
        await reader.sign_in_again()
        if cursor == since:
            return Response(status_code=204, headers=_headers(cursor))
    async with services.admission.turn(actor.tenant):  # so that one tenant's many states keep no other waiting
        if after:
            return await reader.load(None, "", page)
        counts = await services.change_watcher.count()  # first, so that no commit in between is missed
        cursor = await reader.read_cursor(counts)
        headers = _headers(cursor)
        if if_none_match is not None and etag_matches(if_none_match, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        response.headers.update(headers)
        return await reader.load(counts, cursor, page)


def _headers(cursor: str) -> dict[str, str]:
    return {"ETag": f'"{cursor}"', "Cache-Control": REVALIDATE}


async def _wait_for_change(request: Request, reader: _DesiredStateReader, since: str, until: float) -> str:
    """Return the cursor once it differs from `since`, or when the time is over."""
    watcher = services_of(request).change_watcher
    counts = await watcher.count()
    cursor = await reader.read_cursor(counts)
    while cursor == since and (changed := await watcher.wait(counts, until)) is not None:
        counts, cursor = changed, await reader.read_cursor(changed)
    return cursor


@router.serves(operations.REPORT_NODE)
def report_node(
    session: deps.SessionDep, actor: deps.ActorDep, node: str, engine: str, report: JsonBody[NodeReport]
) -> ReportAccepted:
    """Report what an engine on a node has loaded, and renew its lease."""
    return reports.accept_report(session, actor, node, engine, report)


@router.serves(operations.LIST_NODES)
def list_nodes(
    session: deps.SessionDep,
    actor: deps.ActorDep,
    base: deps.Text = "",
    alias: deps.Text = "",
    node: deps.Text = "",
    adapter: deps.Text = "",
    cursor: deps.CursorDep = "",
    limit: deps.LimitDep = deps.PAGE,
) -> FleetNodes:
    """List nodes and what they serve."""
    node_filter = status.NodeFilter(base=base, alias=alias, node=node, adapter=adapter)
    return status.nodes(session, actor, node_filter, cursor=cursor, limit=limit)
