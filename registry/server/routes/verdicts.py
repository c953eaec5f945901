"""Routes of judging: what is not pushed yet, engines asked about a version, settings for a fleet, renewal.

Invariants
- None of them reads a blob, but for renewal, where an older release kept other facts of a header. Only renewal stores
  something, and only for administrators of all namespaces.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from registry.api.evaluation import (
    ENGINES_LIMIT,
    CheckRequest,
    EngineSettingsList,
    EngineText,
    NormsView,
    RecheckEnginesPage,
    RecheckEnginesRequest,
    VerdictList,
)
from registry.roles import Scope
from registry.server.evaluation import engine_compat, weights
from registry.server.http import routing
from registry.server.http.dependencies import (
    Admin,
    BlobsDep,
    EngineDep,
    NameDep,
    Puller,
    ReadSessionDep,
    SelectorDep,
    SessionDep,
    SettingsDep,
)
from registry.server.maintenance import reevaluate
from registry.server.routes.adapters import VERSION

router = routing.create_router("verdicts")
Engines = Annotated[list[EngineText], Query(alias="engine", max_length=ENGINES_LIMIT)]
Slots = Annotated[int | None, Query(ge=1, le=10_000)]


@router.post("/check")
def check_adapter(session: ReadSessionDep, _actor: Puller, request: CheckRequest) -> VerdictList:
    """Evaluate the header of an adapter that is not pushed. Nothing is stored."""
    return engine_compat.evaluate_files(session, request)


@router.get(VERSION + "/verdicts")
def list_verdicts(
    session: SessionDep,
    actor: Puller,
    name: NameDep,
    selector: SelectorDep,
    asked: Engines = [],  # noqa: B006
) -> VerdictList:
    """List the verdicts of a version; with `engine`, evaluated now."""
    return engine_compat.evaluate_version(session, actor, name, selector, asked)


@router.get(VERSION + "/norms")
def show_norms(session: SessionDep, actor: Puller, name: NameDep, selector: SelectorDep) -> NormsView:
    """Norms of the weights of a version, by module."""
    return weights.show_norms(session, actor, name, selector)


@router.get("/engine-settings")
def recommend_engine_settings(
    session: SessionDep, actor: Puller, base: str, asked: Engines, slots: Slots = None
) -> EngineSettingsList:
    """The engine settings that serve all adapters of a base model."""
    return engine_compat.settings_for_base(session, actor, base, asked, slots)


@router.post("/verdicts/recheck-engines")
def reevaluate_verdicts(
    actor: Admin, engine: EngineDep, blobs: BlobsDep, settings: SettingsDep, request: RecheckEnginesRequest
) -> RecheckEnginesPage:
    """Evaluate versions again for the configured engines, for some seconds. Continue with `next_cursor`."""
    actor.require_everywhere(Scope.ADMIN)
    profiles, seconds = engine_compat.parse_setting(settings.engines), reevaluate.SECONDS
    return reevaluate.evaluate_again(engine, blobs, profiles, actor=actor, cursor=request.cursor, seconds=seconds)
