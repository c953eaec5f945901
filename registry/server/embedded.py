"""The embedded registry: the REST API in the process of one command, for everyone who can read its data folder.

A command sends a few requests, so a resource's routes are imported with its first request, and S3, Alembic and what
signs attestations only where they are needed: three quarters of what the whole server imports is not. Pages and the
Hub API are left out.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fastapi import FastAPI
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from registry import lazy
from registry.api import PREFIX
from registry.server import actors
from registry.server.database.engine import explain_failure, open_database, require_limits
from registry.server.database.revision import is_newest
from registry.server.http.base_app import build_base_app
from registry.server.http.services import Services
from registry.server.settings import Settings
from registry.server.storage.open import open_second_copy, open_store

ROUTERS: Mapping[str, str] = {
    "registry.server.routes.adapters:router": "adapters lineage metadata namespaces resolve",
    "registry.server.routes.transfer.pulls:router": "adapters pulls",
    "registry.server.routes.transfer.links:router": "links",
    "registry.server.routes.aliases:router": "adapters moves",
    "registry.server.routes.access:router": "tokens whoami",
    "registry.server.routes.access:namespace_router": "adapters namespaces",
    "registry.server.routes.aliases:gate_router": "adapters approvals namespaces",
    "registry.server.routes.retention:router": "adapters namespaces",
    "registry.server.routes.verdicts:router": "adapters check engine-settings",
    "registry.server.routes.verdicts:attestation_router": "adapters",
    "registry.server.routes.transfer.pushes:router": "pushes",
    "registry.server.routes.serving:router": "bases fleet",
    "registry.server.routes.bases:router": "bases",
    "registry.server.routes.jobs:router": "campaigns jobs",
    "registry.server.routes.audit:router": "audit events",
    "registry.server.routes.webhooks:router": "webhooks",
    "registry.server.routes.maintenance:health_router": "health",
    "registry.server.routes.maintenance:router": "fsck gc metrics reindex verdicts",
}
"""Path of a router → the first words of its own paths. The first match counts, and what imports least comes first."""


class RoutesOnDemand(BaseRoute):
    """The routes of one router, imported with the first request whose path begins as one of theirs may."""

    def __init__(self, path: str, words: str) -> None:
        self._path = path
        self._beginnings = tuple(f"{PREFIX}/{word}" for word in words.split())
        self._routes: list[BaseRoute] | None = None

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """The match of one of the routes, which is in the scope then."""
        if scope["type"] != "http" or not scope["path"].startswith(self._beginnings):
            return Match.NONE, {}
        if self._routes is None:
            self._routes = lazy.load(self._path).routes
        return max((route.matches(scope) for route in self._routes), key=lambda match: match[0].value)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the route that matched respond."""
        await scope["route"].handle(scope, receive, send)


@contextmanager
def open_embedded() -> Iterator[FastAPI]:
    """The application on the user's data folder. Access to the folder is access to everything in it."""
    settings = Settings.from_env()
    engine = open_database(settings)
    try:
        with explain_failure(engine):
            require_limits(engine)
            if not is_newest(engine):
                lazy.load("registry.server.database.schema:prepare")(engine)
        open_second_copy(settings)  # a wrong URL is an error of every command
        routes = [RoutesOnDemand(path, words) for path, words in ROUTERS.items()]
        services = Services(settings, engine, open_store(settings), _find_profile, trusted=actors.TRUSTED)
        services.requests.writes_lines = False
        log = services.audit_log

        def attest_until(position: int) -> None:
            attester = lazy.load("registry.server.promotion.attestations.attester:Attester")
            attester(engine, services.blobs, lambda: log.keys).attest_until(position)

        log.after_step.append(attest_until)
        yield build_base_app(services, routes)
        log.flush()
    finally:
        engine.dispose()  # the last connection that closes folds SQLite's WAL into the file


def _find_profile(name: str, version: str) -> str:
    profile: str = lazy.load("registry.server.evaluation.engine_profiles:find_stored_profile")(name, version)
    return profile
