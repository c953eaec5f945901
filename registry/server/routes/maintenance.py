"""Routes of operators: health; garbage collection, consistency check, re-index, new engine verdicts, metrics.

For administrators of all namespaces. Long runs are many requests: each works for a few seconds and returns a cursor.
"""

import time

from fastapi import APIRouter, Request, Response
from sqlmodel import col, select
from starlette.concurrency import run_in_threadpool

from registry import __version__, lazy
from registry.api.evaluation import RecheckEnginesPage, RecheckEnginesRequest
from registry.api.maintenance import FsckPage, FsckRequest, GcReport, GcRequest, Health, ReindexPage, ReindexRequest
from registry.api.operations import access as access_operations
from registry.api.operations import maintenance as maintenance_operations
from registry.digest import Digest
from registry.errors import Corrupt, Invalid, NotFound, Unavailable
from registry.roles import Scope
from registry.server.database import db, schema
from registry.server.database.models import VersionFileRow, VersionRow
from registry.server.evaluation import engine_profiles
from registry.server.http import dependencies as deps
from registry.server.http import routing
from registry.server.http.documents import JsonBody
from registry.server.http.issuers import find_issuers
from registry.server.http.operation_router import OperationRouter
from registry.server.http.resolve_cache.middleware import STALE_LIMIT_SECONDS
from registry.server.http.services import services_of
from registry.server.maintenance import gc, reevaluate, reindex
from registry.server.maintenance.fsck.check import check_consistency
from registry.server.routes.openapi import declarations
from registry.server.storage.blobs import key_of

health_router = OperationRouter()
probe_router = APIRouter(route_class=routing.SingleThreadRoute, include_in_schema=False, dependencies=[deps.NO_TOKEN])


@probe_router.get("/livez")
async def check_alive() -> Response:
    """200 while the process runs. Nothing else is checked."""
    return Response("ok\n", media_type="text/plain")


@probe_router.get("/readyz")
async def check_ready(request: Request) -> Response:
    """200 if the server can serve look-ups, from memory too; 503 if it stops, or lost its database a day ago."""
    services, text, status = services_of(request), "ok", 200
    try:
        services.freshness.stamp()
        services.database_reached_at = time.monotonic()
    except Unavailable:
        usable = time.monotonic() - services.database_reached_at < STALE_LIMIT_SECONDS
        text, status = ("stale", 200) if usable else ("the database cannot be reached", 503)
    if services.audit_log.closing.is_set():
        text, status = "stopping", 503
    return Response(f"{text}\n", status, media_type="text/plain")


@health_router.serves(
    access_operations.CHECK_HEALTH,
    responses={503: {"model": Health, "description": "The database or the store is away"}},
)
async def check_health(request: Request, response: Response, store: bool = False) -> Health:
    """200 if the database responds, else 503. With a token it describes the server, and `store` asks the blob store."""
    blobs = services_of(request).blobs
    described = store or services_of(request).trusted is not None or "authorization" in request.headers
    try:
        health = await run_in_threadpool(_describe if described else _check, request)
        if store:
            newest = await run_in_threadpool(_find_newest_file, request)
            stat = await routing.run_in_store_thread(blobs.stat, key_of(newest or Digest.of(b"")))
            if newest is not None and stat is None:
                message = f"the store lacks {newest}, a file of the newest version: see `adapter fsck`"
                raise Corrupt("DIGEST_MISMATCH", f"{message}, or is it another bucket or folder?")
    except (Corrupt, Invalid, NotFound, Unavailable) as e:
        if e.code == "RATE_LIMITED":
            raise
        response.status_code = 503
        request.state.problem, request.state.problem_detail = e.code, e.detail
        return Health(status="unavailable", reason=e.detail if described else "the server cannot reach its database")
    return health


def _check(request: Request) -> Health:
    schema.revision_of(services_of(request).engine)
    return Health(status="ok", sign_in_with=_providers(request))


def _find_newest_file(request: Request) -> Digest | None:
    """A file that the store must have; None while no version is stored."""
    statement = (
        select(VersionFileRow.digest)
        .join(VersionRow, col(VersionRow.id) == col(VersionFileRow.version_id))
        .where(col(VersionRow.purged_at).is_(None))
        .order_by(col(VersionFileRow.version_id).desc(), col(VersionFileRow.path))
        .limit(1)
    )
    with db.session(services_of(request).engine, write=False) as session:
        digest = session.exec(statement).first()
    return Digest(digest) if digest else None


def _providers(request: Request) -> list[str]:
    has_pages = services_of(request).settings.pages != "off"
    return sorted(find_issuers(request).clients) if has_pages else []


def _describe(request: Request) -> Health:
    deps.RequireScope().check(request)
    services = services_of(request)
    return Health(
        status="ok",
        sign_in_with=_providers(request),
        version=__version__,
        database=services.engine.dialect.name,
        blobs=services.blobs.kind,
        schema_revision=schema.revision_of(services.engine),
        capabilities=dict(services.blobs.capabilities),
    )


router = OperationRouter()


@router.serves(maintenance_operations.COLLECT_GARBAGE)
def collect_garbage(target: deps.MaintenanceDep, request: JsonBody[GcRequest]) -> GcReport:
    """Delete blobs that nothing refers to, for a few seconds. Continue with `next_cursor`."""
    return gc.collect_garbage(*target, request)


@router.serves(maintenance_operations.CHECK_STORE)
def check_store(target: deps.MaintenanceDep, request: JsonBody[FsckRequest]) -> FsckPage:
    """Check database and store against each other, for a few seconds. Continue with `next_cursor`."""
    return check_consistency(*target, request)


@router.serves(maintenance_operations.REBUILD_INDEX)
def rebuild_index(target: deps.MaintenanceDep, request: JsonBody[ReindexRequest]) -> ReindexPage:
    """Rebuild the database from the store, for a few seconds. Continue with `next_cursor`."""
    return reindex.rebuild_index(*target, request)


@router.serves(maintenance_operations.REEVALUATE_VERDICTS)
def reevaluate_verdicts(target: deps.MaintenanceDep, request: JsonBody[RecheckEnginesRequest]) -> RecheckEnginesPage:
    """Evaluate versions again for the configured engines, for a few seconds. Continue with `next_cursor`."""
    engine, blobs, settings, actor = target
    profiles, seconds = engine_profiles.parse_setting(settings.engines), reevaluate.SECONDS
    return reevaluate.evaluate_again(engine, blobs, profiles, actor=actor, cursor=request.cursor, seconds=seconds)


@router.serves(maintenance_operations.READ_METRICS, responses={200: declarations.raw("Metrics", "text/plain")})
def read_metrics(request: Request, session: deps.SessionDep, actor: deps.ActorDep) -> Response:
    """Metrics of the server in the text format of Prometheus."""
    actor.require_everywhere(Scope.METRICS)
    metrics = lazy.load("registry.server.http.metrics")  # once it is known whether processes share their counts
    text = metrics.text(session, services_of(request).requests.meter)
    return Response(text, media_type=metrics.CONTENT_TYPE, headers={"Cache-Control": "no-store"})
