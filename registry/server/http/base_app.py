"""`build_base_app`: an application over given routes, with what all routes need: limits, logs, caches, audit log."""

import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial

from fastapi import FastAPI
from sqlalchemy import Engine
from starlette.routing import BaseRoute

from registry import __version__
from registry.server import failpoints
from registry.server.access.one_time_links import OneTimeLinks
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
from registry.server.http.admission import Admission
from registry.server.http.middleware import RequestMiddleware
from registry.server.http.problems import add_exception_handlers
from registry.server.http.request_log import LogMiddleware, RequestLog
from registry.server.http.resolve_cache.change_watcher import ChangeWatcher
from registry.server.http.resolve_cache.freshness import ChangeCounter, Freshness
from registry.server.http.resolve_cache.middleware import ResolveCache
from registry.server.http.resolve_cache.pointers import Pointers
from registry.server.http.resolve_cache.shared_reads import SharedReads
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore
from registry.server.storage.signed_links import LinkSigner

FindProfile = Callable[[str, str], str]
"""`find_stored_profile` of `registry.server.evaluation.engine_profiles`."""


def build_base_app(
    settings: Settings, routes: Sequence[BaseRoute], find_profile: FindProfile, *,
    engine: Engine, blobs: BlobStore, trusted: Actor | None = None,
) -> FastAPI:  # fmt: skip
    """Build an application. `trusted` is the actor of requests without a token (embedded registry)."""
    app = FastAPI(
        title="Adapter registry", version=__version__, docs_url=None, redoc_url=None, openapi_url=None,
        redirect_slashes=False,  # a redirect would contain the Host header, which a client controls
        routes=list(routes),
    )  # fmt: skip
    failpoints.arm(settings.failpoints)
    state = app.state
    state.settings = settings
    state.engine = engine
    state.blobs = blobs
    if state.blobs.links is None:  # links of one process, until a server that others join sets a secret of all
        state.blobs.links = LinkSigner(partial(str, secrets.token_hex(32)))
    state.trusted = trusted
    state.find_profile = find_profile
    state.error_page = None  # renders errors of addresses without a route for browsers, where there are pages
    log = state.audit_log = AuditLog(settings, state.engine, state.blobs)
    state.actor_cache = ActorCache()
    state.request_limiter = RequestLimiter(settings.requests_per_minute)
    state.visit_limiter = RequestLimiter(settings.requests_per_minute)  # apart: anyone can have many addresses
    state.sign_in_links = OneTimeLinks()
    state.failure_limiter = FailureLimiter(settings.failures_per_minute)
    state.stream_limiter = ConcurrencyLimiter(settings.streams_per_token, "event streams of this token")
    state.waits_limiter = ConcurrencyLimiter(settings.waits_per_token, "waiting requests of this token")
    state.upload_limiter = ConcurrencyLimiter(UPLOADS_PER_TOKEN, "uploads of this token")
    state.blob_limiter = ConcurrencyLimiter(UPLOADS_PER_BLOB, "uploads of this blob")
    state.requests = RequestLog()
    state.admission = Admission()
    state.freshness = Freshness(state.engine)
    state.database_reached_at = time.monotonic()
    state.change_counter = ChangeCounter(state.engine)
    state.change_watcher = ChangeWatcher(state.freshness, state.change_counter, log.closing)
    state.shared_reads = SharedReads()
    add_exception_handlers(app)
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
