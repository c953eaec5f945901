"""Routes of maintenance: garbage collection, consistency check, re-index, new engine verdicts, metrics.

For administrators of all namespaces. Long runs are many requests: each works for some seconds and returns a cursor.
"""

from __future__ import annotations

from fastapi import Request, Response

from registry.api.evaluation import RecheckEnginesPage, RecheckEnginesRequest
from registry.api.maintenance import FsckPage, FsckRequest, GcReport, GcRequest, ReindexPage, ReindexRequest
from registry.roles import Scope
from registry.server.evaluation import engine_compat
from registry.server.http import metrics, routing
from registry.server.http.dependencies import Admin, BlobsDep, EngineDep, SessionDep, SettingsDep
from registry.server.maintenance import gc, reevaluate, reindex
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


@router.post("/verdicts/recheck-engines")
def reevaluate_verdicts(
    actor: Admin, engine: EngineDep, blobs: BlobsDep, settings: SettingsDep, request: RecheckEnginesRequest
) -> RecheckEnginesPage:
    """Evaluate versions again for the configured engines, for some seconds. Continue with `next_cursor`."""
    actor.require_everywhere(Scope.ADMIN)
    profiles, seconds = engine_compat.parse_setting(settings.engines), reevaluate.SECONDS
    return reevaluate.evaluate_again(engine, blobs, profiles, actor=actor, cursor=request.cursor, seconds=seconds)


@router.get("/metrics", response_class=Response, responses={200: declarations.raw("Metrics", "text/plain")})
def read_metrics(request: Request, session: SessionDep, actor: Admin) -> Response:
    """Metrics of the server in the text format of Prometheus."""
    actor.require_everywhere(Scope.ADMIN)
    text = metrics.text(session, request.app.state.requests.copy())
    return Response(text, media_type=metrics.CONTENT_TYPE, headers={"Cache-Control": "no-store"})
