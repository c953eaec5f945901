"""`create_app`: the wiring of the application and its error answers.

Invariants
- Every error answer is application/problem+json (to Hub clients: application/json) with status, code, title, detail,
  findings and request id.
- Input never makes a 500; a 500 tells nothing of the inside and is logged with its request id.
- A route that declares neither a scope nor `OPEN` makes `create_app` fail: closed is the default.
- Nothing here starts, migrates or prints anything; `adapter serve` does.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from sqlalchemy import Engine
from starlette.requests import ClientDisconnect

from registry import __version__, errors
from registry.errors import Invalid, NotFound, Reason, Refused, RegistryError, Unavailable
from registry.server import failpoints
from registry.server.access import sign_in
from registry.server.access.issuers import Issuers
from registry.server.access.rate_limits import FailureLimiter, RequestLimiter
from registry.server.actors import Actor
from registry.server.audit.audit_log import AuditLog
from registry.server.database.engine import open_database
from registry.server.evaluation import engine_compat
from registry.server.http.middleware import RequestMiddleware
from registry.server.http.statuses import status_of
from registry.server.hub.upstream import Upstream
from registry.server.promotion.attester import Attester
from registry.server.resolve_cache.change_counter import ChangeCounter
from registry.server.resolve_cache.freshness import Freshness
from registry.server.resolve_cache.middleware import ResolveCache
from registry.server.resolve_cache.pointers import Pointers
from registry.server.routes import (
    access,
    adapters,
    attestations,
    audit,
    bases,
    desired_state,
    fleet,
    gates,
    hub,
    idempotent,
    jobs,
    maintenance,
    namespaces,
    transfer,
    verdicts,
    webhooks,
)
from registry.server.routes.openapi import routes as openapi
from registry.server.routes.openapi.document import ApiDocument, scope_of
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore
from registry.server.storage.open import open_second_copy, open_store

ROOMS = (
    transfer,
    adapters,
    desired_state,
    fleet,
    bases,
    jobs,
    access,
    namespaces,
    gates,
    maintenance,
    verdicts,
    audit,
    attestations,
    webhooks,
    openapi,
    *hub.MODULES,
)
"""Where routes are. No router includes another: `declared_scopes` sees every route, and FastAPI looks for one in a flat
list, not in a tree that it walks twice. The first match counts: what every push and pull asks for stands first, and
`/bases/{base}/adapters` before `/bases/{base}`, which would take it for a name."""

NOTED = (errors.Unauthenticated, errors.Denied, errors.NotFound)
"""What the audit log is told of, in batches: who was refused what, or asked for what they may not know of."""
REASONS_LIMIT = 50
_LOG = logging.getLogger("registry.server")


def create_app(
    settings: Settings,
    *,
    engine: Engine | None = None,
    blobs: BlobStore | None = None,
    trusted: Actor | None = None,
) -> FastAPI:
    """The application over this database and store. `trusted` is who asks in process without a token (embedded)."""
    app = FastAPI(
        title="Adapter registry",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # a redirect would be built from the Host header, which anybody may write
        routes=[route for room in ROOMS for route in room.router.routes],
    )
    failpoints.arm(settings.failpoints)
    app.state.settings = settings
    app.state.engine = engine if engine is not None else open_database(settings)
    app.state.blobs = blobs if blobs is not None else open_store(settings)
    open_second_copy(settings)  # what cannot be read stops the start, not the check that needs it
    app.state.trusted = trusted
    log = app.state.audit_log = AuditLog(settings, app.state.engine, app.state.blobs)
    log.after_step.append(Attester(app.state.engine, app.state.blobs, lambda: log.keys).attest_until)
    app.state.actor_cache = sign_in.ActorCache()
    app.state.issuers = Issuers.read(settings.issuers)
    app.state.request_limiter = RequestLimiter(settings.requests_per_minute)
    app.state.failure_limiter = FailureLimiter(settings.failures_per_minute)
    app.state.upstream = Upstream(settings.hub_upstream) if settings.hub_upstream else None
    engine_compat.parse_setting(settings.engines)  # a wrong setting is told before anything starts
    _refuse_undeclared()
    app.add_exception_handler(RegistryError, _registry_error)
    app.add_exception_handler(idempotent.Answered, idempotent.replay)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(400, _unreadable)
    app.add_exception_handler(404, _no_route)
    app.add_exception_handler(405, _no_method)
    app.add_exception_handler(Exception, _bug)
    app.state.requests = Counter()
    app.state.api_document = ApiDocument(app.routes)
    app.add_middleware(RequestMiddleware, stall_seconds=settings.stall_seconds, counts=app.state.requests)
    app.state.freshness = Freshness(app.state.engine)
    app.state.change_counter = ChangeCounter(app.state.engine)
    app.add_middleware(
        ResolveCache,
        freshness=app.state.freshness,
        pointers=Pointers(app.state.engine),
        actors=app.state.actor_cache,
        limiter=app.state.request_limiter,
        extra_headers=lambda: log.checkpoint_header,
    )
    return app


def problem(request: Request, error: RegistryError, *, status: int | None = None) -> Response:
    """The answer that tells of an error (RFC 9457)."""
    code = status or status_of(error)
    body = error.to_problem() | {"status": code, "request_id": request.state.request_id}
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    told = hub.error_headers(request, error)
    body |= {"error": told["X-Error-Message"]} if told else {}
    kind = "application/json" if told else "application/problem+json"  # the dialect's clients read no other
    return Response(json.dumps(body), code, headers | told, media_type=kind)


def declared_scopes() -> dict[tuple[str, str], str | None]:
    """(method, path) of every route of the application → its scope."""
    return {
        (method, getattr(route, "path", "?")): scope_of(route) if isinstance(route, APIRoute) else None
        for room in ROOMS
        for route in room.router.routes
        for method in getattr(route, "methods", None) or ["?"]
    }


def _refuse_undeclared() -> None:
    undeclared = [f"{method} {path}" for (method, path), scope in declared_scopes().items() if scope is None]
    if undeclared:
        raise RuntimeError(f"routes without a declared scope: {', '.join(undeclared)}")


def _registry_error(request: Request, error: Exception) -> Response:
    found = error if isinstance(error, RegistryError) else RegistryError("INTERNAL", "the server failed")
    if status_of(found) >= 500 and not isinstance(found, Refused):  # 501: the asker's mistake
        _LOG.error("request %s: %s: %s", request.state.request_id, found.code, found.detail)
    if isinstance(found, NOTED):
        request.app.state.audit_log.batch.add_denial(request.scope, type(found).__name__)
    return problem(request, found)


def _invalid_request(request: Request, error: Exception) -> Response:
    """pydantic's findings as reasons; a `TooLarge` or `Invalid` of ours never comes this way."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    reasons = [_reason(item) for item in found[:REASONS_LIMIT]]
    first = f"{reasons[0].location}: {reasons[0].message}" if reasons else "the request cannot be read"
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return problem(request, Invalid("REQUEST_INVALID", first + more, reasons=reasons))


def _reason(item: Any) -> Reason:
    location = ".".join(str(part) for part in item["loc"])[:300]
    return Reason(f"request.{item['type'].replace('-', '_')}", location, str(item["msg"])[:500])


def _left(request: Request, _error: Exception) -> Response:
    """Nobody hears this; it only keeps a sender that went away from looking like a bug."""
    return problem(request, Unavailable("BODY_STALLED", "the sender left before the end of the body"))


def _unreadable(request: Request, _error: Exception) -> Response:
    return problem(request, Invalid("REQUEST_INVALID", "the body is not JSON that can be read"))


def _no_route(request: Request, _error: Exception) -> Response:
    return problem(request, NotFound("ROUTE_UNKNOWN", f"there is no route {request.url.path[:200]!r}"))


def _no_method(request: Request, error: Exception) -> Response:
    message = f"{request.url.path[:200]!r} does not take {request.method}"
    answer = problem(request, NotFound("ROUTE_UNKNOWN", message), status=405)
    answer.headers.update(getattr(error, "headers", None) or {})  # which methods it takes
    return answer


def _bug(request: Request, error: Exception) -> Response:
    _LOG.exception("request %s failed", request.state.request_id, exc_info=error)
    answer = problem(request, RegistryError("INTERNAL", "the server failed; its log has this request's id"))
    answer.headers["X-Request-Id"] = request.state.request_id  # this handler is outside of RequestMiddleware
    return answer
