"""Routes of upkeep: metrics; garbage collection, checking, re-indexing, which work for seconds and hand out a cursor.

Invariants
- Only for administrators of all namespaces. What works for seconds holds no transaction for the length of the request.
"""

from __future__ import annotations

from fastapi import Request, Response

from registry.api.maintenance import FsckPage, FsckRequest, GcReport, GcRequest, ReindexPage, ReindexRequest
from registry.roles import Scope
from registry.server.http import metrics, routing
from registry.server.http.dependencies import Admin, BlobsDep, EngineDep, SessionDep, SettingsDep
from registry.server.maintenance import gc, reindex
from registry.server.maintenance.fsck.check import check_consistency
from registry.server.routes.openapi import declarations

router = routing.create_router("maintenance")


@router.post("/gc")
def collect_garbage(
    actor: Admin, engine: EngineDep, blobs: BlobsDep, settings: SettingsDep, request: GcRequest
) -> GcReport:
    """Delete blobs that nothing refers to, for some seconds. Continue with `next_cursor`."""
    actor.require_everywhere(Scope.ADMIN)
    return gc.collect_garbage(engine, blobs, settings, actor, request)


@router.post("/fsck")
def check_store(
    actor: Admin, engine: EngineDep, blobs: BlobsDep, settings: SettingsDep, request: FsckRequest
) -> FsckPage:
    """Check database and store against each other, for some seconds. Continue with `next_cursor`."""
    actor.require_everywhere(Scope.ADMIN)
    return check_consistency(engine, blobs, settings, actor, request)


@router.post("/reindex")
def rebuild_index(actor: Admin, engine: EngineDep, blobs: BlobsDep, request: ReindexRequest) -> ReindexPage:
    """Rebuild the database from the store, for some seconds. Continue with `next_cursor`."""
    actor.require_everywhere(Scope.ADMIN)
    return reindex.rebuild_index(engine, blobs, actor, request)


@router.get("/metrics", response_class=Response, responses={200: declarations.raw("Metrics", "text/plain")})
def read_metrics(request: Request, session: SessionDep, actor: Admin) -> Response:
    """Metrics of the server in the text format of Prometheus."""
    actor.require_everywhere(Scope.ADMIN)
    text = metrics.text(session, request.app.state.requests.copy())
    return Response(text, media_type=metrics.CONTENT_TYPE, headers={"Cache-Control": "no-store"})
