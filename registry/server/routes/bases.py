"""Routes of base models: add, list, show; their weights, and how they are related."""

import threading
import time

import anyio
from fastapi import BackgroundTasks, Response
from sqlalchemy import Engine

from registry.api.bases import (
    BaseAdd,
    BaseAliases,
    BasePage,
    BaseView,
    IdentityRequest,
    ModulesRequest,
    ThresholdsRequest,
)
from registry.api.catalog import DeleteResult
from registry.api.operations import bases as operations
from registry.bases import Similarity
from registry.errors import Unavailable
from registry.roles import Scope
from registry.server.catalog import base_weights, bases, refs
from registry.server.evaluation import engine_profiles
from registry.server.http import dependencies as deps
from registry.server.http import routing
from registry.server.http.documents import JsonBody
from registry.server.http.operation_router import OperationRouter
from registry.server.maintenance import reevaluate
from registry.server.routes.openapi import declarations
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore

router = OperationRouter()
TURN_SECONDS = 5.0
PAUSE_SECONDS = 1.0
PATIENCE_SECONDS = 600.0
"""How long a base waits for its turn. What is missed then is evaluated at the next start of a server."""


@router.serves(operations.ADD_BASE, responses=declarations.existing(BaseView))
def add_base(
    session: deps.SessionDep, actor: deps.ActorDep, request: JsonBody[BaseAdd], response: Response,
    after: BackgroundTasks, engine: deps.EngineDep, blobs: deps.BlobsHandleDep, settings: deps.SettingsDep,
    log: deps.AuditLogDep,
) -> BaseView:  # fmt: skip
    """Register a base model. 201 for a new one, 200 for one that exists with the same facts."""
    view, change = bases.add(session, actor, request)
    if change != "same":
        after.add_task(_evaluate_waiting, engine, blobs, settings, view.name, log.closing)
    response.status_code = 201 if change == "new" else 200
    return view


@router.serves(operations.LIST_BASES)
def list_bases(
    session: deps.SessionDep, actor: deps.ActorDep, cursor: deps.CursorDep, limit: deps.LimitDep = deps.PAGE,
    modules: bool = True,
) -> BasePage:  # fmt: skip
    """List base models by name; with `modules=false`, without the modules of their specs, which may have megabytes."""
    return bases.list_bases(session, actor, cursor=cursor, limit=limit, modules=modules)


@router.serves(operations.SHOW_BASE)
@routing.responds_at_length
def show_base(session: deps.SessionDep, actor: deps.ActorDep, base: str) -> BaseView:
    """Show one base model and its relatives."""
    return bases.show(session, actor, base)


@router.serves(operations.DELETE_BASE)
def delete_base(
    session: deps.SessionDep, actor: deps.ActorDep, base: str, blobs: deps.BlobsDep, after: BackgroundTasks
) -> DeleteResult:
    """Delete a base model that no version and no waiting job refers to."""
    name = bases.delete(session, actor, base)
    after.add_task(routing.run_in_store_thread, refs.delete_base, blobs, name)
    return DeleteResult(name=name)


@router.serves(operations.SET_BASE_ALIASES)
def set_base_aliases(
    session: deps.SessionDep, actor: deps.ActorDep, base: str, request: JsonBody[BaseAliases], after: BackgroundTasks,
    engine: deps.EngineDep, blobs: deps.BlobsHandleDep, settings: deps.SettingsDep, log: deps.AuditLogDep,
) -> BaseView:  # fmt: skip
    """Replace the other names of a base model. For administrators of all namespaces."""
    view = bases.set_aliases(session, actor, base, request.aliases)
    after.add_task(_evaluate_waiting, engine, blobs, settings, view.name, log.closing)
    return view


async def _evaluate_waiting(
    engine: Engine, blobs: BlobStore, settings: Settings, base: str, closing: threading.Event
) -> None:
    """Evaluate the versions that waited for this base. Bases that are added at the same time take turns."""
    profiles = engine_profiles.parse_setting(settings.engines)
    cursor, until = "", time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until and not closing.is_set():
        try:
            page = await routing.run_in_store_thread(
                reevaluate.evaluate_again, engine, blobs, profiles, cursor=cursor, seconds=TURN_SECONDS, base=base
            )
        except Unavailable:  # it is another base's turn
            pass
        else:
            if not page.next_cursor:
                return
            cursor, until = page.next_cursor, time.monotonic() + PATIENCE_SECONDS
        await anyio.sleep(PAUSE_SECONDS)


@router.serves(operations.IDENTIFY_BASE)
def identify_base(
    session: deps.SessionDep, actor: deps.ActorDep, base: str, request: JsonBody[IdentityRequest]
) -> BaseView:
    """Record which weights a base model has, once."""
    return bases.identify(session, actor, base, request.identity)


@router.serves(operations.SET_BASE_MODULES)
def set_base_modules(
    session: deps.SessionDep, actor: deps.ActorDep, base: str, request: JsonBody[ModulesRequest],
    after: BackgroundTasks, engine: deps.EngineDep, blobs: deps.BlobsHandleDep, settings: deps.SettingsDep,
    log: deps.AuditLogDep,
) -> BaseView:  # fmt: skip
    """Record the modules of a base model as a library builds them. Those of a newer version stay."""
    view = bases.set_modules(session, actor, base, request.modules)
    after.add_task(_evaluate_waiting, engine, blobs, settings, view.name, log.closing)
    return view


@router.serves(operations.SET_THRESHOLDS)
def set_thresholds(
    session: deps.SessionDep, actor: deps.ActorDep, base: str, request: JsonBody[ThresholdsRequest]
) -> BaseView:
    """Set the thresholds of smoke tests on this base model. For administrators of all namespaces."""
    actor.require_everywhere(Scope.ADMIN)
    return bases.set_thresholds(session, actor, base, request.thresholds)


@router.serves(operations.COMPARE_BASE)
def compare_base(
    session: deps.SessionDep, _actor: deps.ActorDep, base: str, request: JsonBody[IdentityRequest]
) -> Similarity:
    """Compare weights with those of a base model. Nothing is stored."""
    return base_weights.compare_weights(session, base, request.identity)
