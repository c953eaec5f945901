"""Routes of judging: what is not pushed yet, engines asked about a version, settings for a fleet, renewal.

Invariants
- None of them reads a blob, but for renewal, where an older release kept other facts of a header. Only renewal stores
  something, and only for administrators of all namespaces.

Example
    GET /api/v1/adapters/acme/support/versions/prod/verdicts?engine=vllm==0.33.0,max_lora_rank=32
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from registry.api.verdicts import (
    ENGINES_LIMIT,
    CheckRequest,
    EngineText,
    FleetView,
    RejudgePage,
    RejudgeRequest,
    ValuesView,
    VerdictList,
)
from registry.server.evaluation import engine_compat, weights
from registry.server.maintenance import reevaluate
from registry.server.routes import idempotent
from registry.server.routes.adapters import VERSION
from registry.server.routes.deps import (
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

router = idempotent.router("verdicts")
Engines = Annotated[list[EngineText], Query(alias="engine", max_length=ENGINES_LIMIT)]
Slots = Annotated[int | None, Query(ge=1, le=10_000)]


@router.post("/check")
def check(session: ReadSessionDep, _actor: Puller, request: CheckRequest) -> VerdictList:
    """`compat`, then `engine` for each engine; nothing is stored."""
    return engine_compat.check(session, request)


@router.get(VERSION + "/verdicts")
def version_verdicts(
    session: SessionDep,
    actor: Puller,
    name: NameDep,
    selector: SelectorDep,
    asked: Engines = [],  # noqa: B006
) -> VerdictList:
    return engine_compat.of_version(session, actor, name, selector, asked)


@router.get(VERSION + "/values")
def version_values(session: SessionDep, actor: Puller, name: NameDep, selector: SelectorDep) -> ValuesView:
    return weights.of_version(session, actor, name, selector)


@router.get("/fleet")
def fleet(session: SessionDep, actor: Puller, base: str, asked: Engines, slots: Slots = None) -> FleetView:
    return engine_compat.fleet(session, actor, base, asked, slots)


@router.post("/verdicts/rejudge")
def rejudge(
    actor: Admin, engine: EngineDep, blobs: BlobsDep, settings: SettingsDep, request: RejudgeRequest
) -> RejudgePage:
    actor.require_everywhere("admin")
    return reevaluate.run(engine, blobs, actor, engine_compat.profiles(settings.engines), request.cursor)
