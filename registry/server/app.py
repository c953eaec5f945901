"""`create_app`: builds the application of `adapter serve` from its settings: every route, the pages and the Hub API.

- A route without a declared scope, or a route of the REST API without a row in the table of operations, is an error at
  start; and so is a row without a route.
- Nothing is started, migrated or printed here; `adapter serve` does that.
"""

from collections import Counter
from collections.abc import Iterator

from fastapi import APIRouter, FastAPI
from sqlalchemy import Engine

from registry import lazy
from registry.api import PREFIX
from registry.api.operations.table import OPERATIONS
from registry.server.access.issuers import Issuers
from registry.server.database.engine import open_database
from registry.server.evaluation import engine_profiles
from registry.server.http.base_app import build_base_app
from registry.server.http.routing import SingleThreadRoute
from registry.server.http.services import Services
from registry.server.pages import ROUTERS as PAGE_ROUTERS
from registry.server.pages.rendering import render_unknown
from registry.server.promotion.attestations.attester import Attester
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
    verdicts,
    webhooks,
)
from registry.server.routes.openapi import routes as openapi
from registry.server.routes.transfer import links, pulls, pushes
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore
from registry.server.storage.open import open_second_copy, open_store

ROUTERS: tuple[APIRouter, ...] = (
    pushes.router,
    pulls.router,
    links.router,
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
    webhooks.router,
    openapi.router,
    maintenance.probe_router,
    *PAGE_ROUTERS,
    *hub.ROUTERS,
)
"""FastAPI searches routes in a flat list, and the first match counts: frequent routes come first, and
`/bases/{base}/adapters` before `/bases/{base}`, which would match it as a name."""


def create_app(settings: Settings, *, engine: Engine | None = None, blobs: BlobStore | None = None) -> FastAPI:
    """Build the application. Settings that no request needs at once are checked here too."""
    routes = [route for router in _routers(settings) for route in router.routes]
    _require_declared_scopes()
    _require_every_operation()
    open_second_copy(settings)
    engine_profiles.parse_setting(settings.engines)
    services = Services(
        settings,
        engine or open_database(settings),
        blobs or open_store(settings),
        engine_profiles.find_stored_profile,
        quick_blobs=blobs or open_store(settings, is_quick=True),
        error_page=render_unknown if settings.pages != "off" else None,
        issuers=Issuers.read(settings.issuers),
    )
    services.requests.meter = lazy.load("registry.server.http.request_metrics:RequestMetrics")()
    log = services.audit_log
    log.after_step.append(Attester(services.engine, services.blobs, lambda: log.keys).attest_until)
    return build_base_app(services, routes)


def _routers(settings: Settings) -> Iterator[APIRouter]:
    """Yield the routers that these settings turn on."""
    yield from (router for router in ROUTERS if settings.pages != "off" or router not in PAGE_ROUTERS)


def declared_scopes() -> dict[tuple[str, str], str | None]:
    """Return (method, path) → scope of every route; see `SingleThreadRoute.scope`."""
    return {
        (method, getattr(route, "path", "?")): route.scope if isinstance(route, SingleThreadRoute) else None
        for router in ROUTERS
        for route in router.routes
        for method in getattr(route, "methods", None) or ["?"]
    }


def _require_declared_scopes() -> None:
    undeclared = [f"{method} {path}" for (method, path), scope in declared_scopes().items() if scope is None]
    if undeclared:
        raise RuntimeError(f"routes without a declared scope: {', '.join(undeclared)}")


def _require_every_operation() -> None:
    """Raise `RuntimeError` unless the routes of the REST API are those of the table, each once."""
    served = Counter(getattr(route, "operation", None) for router in ROUTERS for route in router.routes
                     if getattr(route, "path", "").startswith(PREFIX))  # fmt: skip
    if served != Counter(OPERATIONS.values()):
        raise RuntimeError("the routes of the REST API are not those of registry/api/operations")
