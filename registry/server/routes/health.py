"""Routes of health: `/livez` and `/readyz` for balancers and orchestrators, and a description of the server.

While the database is unreachable, a server still answers look-ups that it has in memory, so it stays ready.
"""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from registry import __version__
from registry.api.maintenance import Health
from registry.digest import Digest
from registry.errors import Corrupt, Invalid, NotFound, Unavailable
from registry.server.database import schema
from registry.server.http import routing
from registry.server.http.dependencies import NO_TOKEN, RequireScope
from registry.server.resolve_cache.middleware import STALE_LIMIT_SECONDS
from registry.server.storage.blobs import BlobStore, key_of

router = routing.create_router("access")
probe_router = APIRouter(route_class=routing.SingleThreadRoute, include_in_schema=False, dependencies=[NO_TOKEN])


@probe_router.get("/livez")
async def check_alive() -> Response:
    """200 while the process answers. Nothing else is asked."""
    return Response("ok\n", media_type="text/plain")


@probe_router.get("/readyz")
async def check_ready(request: Request) -> Response:
    """200 if the server can answer look-ups, from memory too; 503 if it stops, or lost its database a day ago."""
    state, answer, status = request.app.state, "ok", 200
    try:
        state.freshness.stamp()
        state.database_reached_at = time.monotonic()
    except Unavailable:
        usable = time.monotonic() - state.database_reached_at < STALE_LIMIT_SECONDS
        answer, status = ("stale", 200) if usable else ("the database cannot be reached", 503)
    if state.audit_log.closing.is_set():
        answer, status = "stopping", 503
    return Response(f"{answer}\n", status, media_type="text/plain")


@router.get(
    "/health",
    responses={503: {"model": Health, "description": "The database or the store is away"}},
    dependencies=[NO_TOKEN],
)
async def check_health(request: Request, response: Response, store: bool = False) -> Health:
    """200 if the database answers, else 503. With a token it describes the server, and `store` asks the blob store."""
    blobs: BlobStore = request.app.state.blobs
    described = store or request.app.state.trusted is not None or "authorization" in request.headers
    try:
        health = await run_in_threadpool(_describe if described else _check, request)
        if store:
            await routing.run_in_store_thread(blobs.stat, key_of(Digest.of(b"")))
    except (Corrupt, Invalid, NotFound, Unavailable) as e:
        if e.code == "RATE_LIMITED":
            raise
        response.status_code = 503
        return Health(status="unavailable", reason=e.detail if described else "the server cannot reach its database")
    return health


def _check(request: Request) -> Health:
    schema.revision_of(request.app.state.engine)
    return Health(status="ok")


def _describe(request: Request) -> Health:
    RequireScope().check(request)
    state = request.app.state
    return Health(
        status="ok",
        version=__version__,
        database=state.engine.dialect.name,
        blobs=state.blobs.kind,
        schema_revision=schema.revision_of(state.engine),
        capabilities=state.blobs.describe(),
    )
