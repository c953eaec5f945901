"""`create_app`: builds the application from its settings.

- A route without a declared scope is an error at start.
- Nothing is started, migrated or printed here; `adapter serve` does that.
"""

import secrets
import time
from collections.abc import Iterator
from functools import partial

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from sqlalchemy import Engine

from registry import __version__
from registry.errors import Invalid
from registry.server import failpoints
from registry.server.access.issuers import Issuers
from registry.server.access.rate_limits import (
    UPLOADS_PER_BLOB,
    UPLOADS_PER_TOKEN,
    ConcurrencyLimiter,
    FailureLimiter,
    RequestLimiter,
)
from registry.server.access.sign_in import ActorCache
from registry.server.actors import Actor
from registry.server.audit.audit_log import AuditLog
from registry.server.database.engine import open_database
from registry.server.evaluation import engine_compat
from registry.server.http.idempotency import RepeatedRequest, replay_answer
from registry.server.http.middleware import RequestMiddleware
from registry.server.http.problems import add_exception_handlers
from registry.server.http.request_body import (
    DISK_BYTES,
    NAMESPACE_BYTES,
    PROCESS_BYTES,
    SUBJECT_BYTES,
    UNCHECKED_BYTES,
    BodyBudget,
)
from registry.server.http.request_log import LogMiddleware, RequestLog
from registry.server.hub.upstream import Upstream
from registry.server.local_links.answers import LinkBackend
from registry.server.pages import ROUTERS as PAGE_ROUTERS
from registry.server.promotion.attestations import Attester
from registry.server.resolve_cache.freshness import ChangeCounter, Freshness
from registry.server.resolve_cache.middleware import ResolveCache
from registry.server.resolve_cache.pointers import Pointers
from registry.server.routes import (
    access,
    adapters,
    aliases,
    audit,
    bases,
    hub,
    jobs,
    maintenance,
    retention,
    serving,
    transfer,
    verdicts,
)
from registry.server.routes.openapi import routes as openapi
from registry.server.routes.openapi.document import scope_of
from registry.server.sessions.one_time_links import OneTimeLinks
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore
from registry.server.storage.open import open_second_copy, open_store
from registry.server.storage.signed_links import LinkSigner

ROUTERS: tuple[APIRouter, ...] = (
    transfer.router,
    adapters.router,
    aliases.router,
    serving.router,
    bases.router,
    jobs.router,
    access.router,
    maintenance.health_router,
    access.namespace_router,
    aliases.gate_router,
    retention.router,
    maintenance.router,
    verdicts.router,
    audit.router,
    verdicts.attestation_router,
    audit.webhook_router,
    openapi.router,
    maintenance.probe_router,
    *PAGE_ROUTERS,
    *hub.ROUTERS,
)
"""FastAPI searches routes in a flat list, and the first match counts: frequent routes come first, and
`/bases/{base}/adapters` before `/bases/{base}`, which would match it as a name."""


PAGES_CHOICES = ("on", "private", "off")


def create_app(
    settings: Settings, *, engine: Engine | None = None, blobs: BlobStore | None = None, trusted: Actor | None = None
) -> FastAPI:
    """Build the application. `trusted` is the actor of requests without a token (embedded registry)."""
    app = FastAPI(
        title="Adapter registry", version=__version__, docs_url=None, redoc_url=None, openapi_url=None,
        redirect_slashes=False,  # a redirect would contain the Host header, which a client controls
        routes=[route for router in _routers(settings) for route in router.routes],
    )  # fmt: skip
    _require_declared_scopes()
    # Invalid settings are reported here and not when they are first used.
    failpoints.arm(settings.failpoints)
    engine_compat.parse_setting(settings.engines)
    open_second_copy(settings)
    state = app.state
    state.settings = settings
    state.engine = engine if engine is not None else open_database(settings)
    state.blobs = blobs if blobs is not None else open_store(settings)
    if state.blobs.links is None:  # links of one process, until a server that others join sets a secret of all
        state.blobs.links = LinkSigner(partial(str, secrets.token_hex(32)))
    state.trusted = trusted
    log = state.audit_log = AuditLog(settings, state.engine, state.blobs)
    log.after_step.append(Attester(state.engine, state.blobs, lambda: log.keys).attest_until)
    state.issuers = Issuers.read(settings.issuers)
    state.actor_cache = ActorCache()
    state.request_limiter = RequestLimiter(settings.requests_per_minute)
    state.visit_limiter = RequestLimiter(settings.requests_per_minute)  # apart: anyone can have many addresses
    state.sign_in_links = OneTimeLinks()
    state.failure_limiter = FailureLimiter(settings.failures_per_minute)
    state.stream_limiter = ConcurrencyLimiter(settings.streams_per_token, "event streams of this token")
    state.upload_limiter = ConcurrencyLimiter(UPLOADS_PER_TOKEN, "uploads of this token")
    state.blob_limiter = ConcurrencyLimiter(UPLOADS_PER_BLOB, "uploads of this blob")
    state.upstream = Upstream(settings.hub_upstream) if settings.hub_upstream else None
    state.api_document = openapi.ApiDocument(app.routes)
    state.requests = RequestLog()
    state.body_budget = BodyBudget(PROCESS_BYTES, SUBJECT_BYTES, NAMESPACE_BYTES)
    state.disk_budget = BodyBudget(DISK_BYTES, DISK_BYTES // 4, DISK_BYTES // 2)
    state.unchecked_budget = BodyBudget(UNCHECKED_BYTES, UNCHECKED_BYTES // 2, 0)
    state.freshness = Freshness(state.engine)
    state.database_reached_at = time.monotonic()
    state.change_counter = ChangeCounter(state.engine)
    state.shared_reads = serving.SharedReads()
    upload = partial(transfer.receive_upload, state)
    state.link_context = LinkBackend(state.blobs, upload, settings.stall_seconds, log.closing.is_set)
    add_exception_handlers(app)
    app.add_exception_handler(RepeatedRequest, replay_answer)
    app.add_middleware(RequestMiddleware, stall_seconds=settings.stall_seconds)
    app.add_middleware(
        ResolveCache,
        freshness=state.freshness,
        pointers=Pointers(state.engine),
        actors=state.actor_cache,
        limiter=state.request_limiter,
        extra_headers=lambda: log.checkpoint_header,
    )
    app.add_middleware(LogMiddleware, log=state.requests)
    return app


def _routers(settings: Settings) -> Iterator[APIRouter]:
    """Yield the routers that these settings turn on. `Invalid` (SETTING_INVALID) for an unknown value."""
    if settings.pages not in PAGES_CHOICES:
        raise Invalid("SETTING_INVALID", f"REGISTRY_PAGES: {settings.pages[:40]!r} is not one of {PAGES_CHOICES}")
    yield from (router for router in ROUTERS if settings.pages != "off" or router not in PAGE_ROUTERS)


def declared_scopes() -> dict[tuple[str, str], str | None]:
    """Return (method, path) → scope of every route; see `scope_of`."""
    return {
        (method, getattr(route, "path", "?")): scope_of(route) if isinstance(route, APIRoute) else None
        for router in ROUTERS
        for route in router.routes
        for method in getattr(route, "methods", None) or ["?"]
    }


def _require_declared_scopes() -> None:
    undeclared = [f"{method} {path}" for (method, path), scope in declared_scopes().items() if scope is None]
    if undeclared:
        raise RuntimeError(f"routes without a declared scope: {', '.join(undeclared)}")
