"""`build_base_app`: an application over given services and routes, with the layers that all requests pass."""

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.routing import BaseRoute

from registry import __version__
from registry.server import failpoints
from registry.server.http.middleware import RequestMiddleware
from registry.server.http.problems import add_exception_handlers
from registry.server.http.request_log import LogMiddleware
from registry.server.http.resolve_cache.middleware import ResolveCache
from registry.server.http.resolve_cache.pointers import Pointers
from registry.server.http.services import Services


def build_base_app(services: Services, routes: Sequence[BaseRoute]) -> FastAPI:
    """Build an application."""
    app = FastAPI(
        title="Adapter registry", version=__version__, docs_url=None, redoc_url=None, openapi_url=None,
        redirect_slashes=False,  # a redirect would contain the Host header, which a client controls
        routes=list(routes),
    )  # fmt: skip
    app.state = services  # type: ignore[assignment]
    failpoints.arm(services.settings.failpoints)
    add_exception_handlers(app)
    app.add_middleware(RequestMiddleware, stall_seconds=services.settings.stall_seconds)
    app.add_middleware(
        ResolveCache,
        freshness=services.freshness,
        pointers=Pointers(services.engine),
        actors=services.actor_cache,
        limiter=services.request_limiter,
        extra_headers=lambda: services.audit_log.checkpoint_header,
    )
    app.add_middleware(LogMiddleware, log=services.requests)
    return app
