"""The embedded registry: the REST API in the process of one command, for everyone who can read its data folder.

A command sends a few requests, so a resource's routes are imported with its first request, and S3, Alembic and what
signs attestations only where they are needed: three quarters of what the whole server imports is not. Pages and the
Hub API are left out.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from registry.api import PREFIX
from registry.server import actors
from registry.server.base_app import build_base_app
from registry.server.database.engine import explain_failure, open_database, require_limits
from registry.server.database.revision import is_newest
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore
from registry.server.storage.local import LocalBlobs

Load = Callable[[str, str], Any]
"""Imports an attribute of a module: the lazy loader of the command line."""

ROUTERS: Mapping[tuple[str, str], str] = {
    ("adapters", "router"): "adapters lineage metadata resolve",
    ("transfer.pulls", "router"): "adapters pulls",
    ("transfer.links", "router"): "links",
    ("aliases", "router"): "adapters moves",
    ("access", "router"): "tokens whoami",
    ("access", "namespace_router"): "adapters namespaces",
    ("aliases", "gate_router"): "adapters approvals namespaces",
    ("retention", "router"): "adapters namespaces",
    ("verdicts", "router"): "adapters check engine-settings",
    ("verdicts", "attestation_router"): "adapters",
    ("transfer.pushes", "router"): "pushes",
    ("serving", "router"): "bases fleet",
    ("bases", "router"): "bases",
    ("jobs", "router"): "campaigns jobs",
    ("audit", "router"): "audit events",
    ("webhooks", "router"): "webhooks",
    ("maintenance", "health_router"): "health",
    ("maintenance", "router"): "fsck gc metrics reindex verdicts",
}
"""Module in `registry.server.routes` and its router → the first words of its paths. The first match counts, and what
imports least comes first."""


class RoutesOnDemand(BaseRoute):
    """The routes of one router, imported with the first request whose path begins as one of theirs may."""

    def __init__(self, load: Load, module: str, attribute: str, words: str) -> None:
        self._load, self._module, self._attribute = load, f"registry.server.routes.{module}", attribute
        self._beginnings = tuple(f"{PREFIX}/{word}" for word in words.split())
        self._routes: list[BaseRoute] | None = None

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """The match of one of the routes, which is in the scope then."""
        if scope["type"] != "http" or not scope["path"].startswith(self._beginnings):
            return Match.NONE, {}
        if self._routes is None:
            self._routes = self._load(self._module, self._attribute).routes
        return max((route.matches(scope) for route in self._routes), key=lambda match: match[0].value)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the route that matched respond."""
        await scope["route"].handle(scope, receive, send)


@contextmanager
def open_embedded(load: Load) -> Iterator[FastAPI]:
    """The application on the user's data folder. Access to the folder is access to everything in it."""
    settings = Settings.from_env()
    engine = open_database(settings)
    try:
        with explain_failure(engine):
            require_limits(engine)
            if not is_newest(engine):
                load("registry.server.database.schema", "prepare")(engine)

        def on_demand(module: str, attribute: str) -> Callable[..., Any]:
            return lambda *values: load(f"registry.server.{module}", attribute)(*values)

        find_profile = on_demand("evaluation.engine_profiles", "find_stored_profile")
        routes = [RoutesOnDemand(load, *router, words) for router, words in ROUTERS.items()]
        app = build_base_app(
            settings, routes, find_profile, engine=engine, blobs=_open_store(settings, load),
            trusted=actors.TRUSTED,
        )  # fmt: skip

        def attest_until(position: int) -> None:
            attester = load("registry.server.promotion.attestations.attester", "Attester")
            attester(engine, app.state.blobs, lambda: app.state.audit_log.keys).attest_until(position)

        app.state.audit_log.after_step.append(attest_until)
        app.state.requests.writes_lines = False
        yield app
        app.state.audit_log.flush()
    finally:
        engine.dispose()  # the last connection that closes folds SQLite's WAL into the file


def _open_store(settings: Settings, load: Load) -> BlobStore:
    if settings.blobs.startswith("s3:") or settings.second_copy:
        load("registry.server.storage.open", "open_second_copy")(settings)
        store: BlobStore = load("registry.server.storage.open", "open_store")(settings)
        return store
    return LocalBlobs.from_url(settings.blobs)
