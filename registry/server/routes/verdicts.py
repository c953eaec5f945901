"""Routes of verdicts: check files, verdicts and norms of a version, engine settings; and of attestations."""

from typing import Annotated

from fastapi import Query, Request, Response

from registry.api.audit.attestations import AttestationList, AttestationView, SignRequest
from registry.api.evaluation import ENGINES_LIMIT, CheckRequest, EngineSettingsList, EngineText, NormsView, VerdictList
from registry.api.operations import attestations as attestation_operations
from registry.api.operations import evaluation as evaluation_operations
from registry.server.database import db
from registry.server.evaluation import engine_compat, weights
from registry.server.http import dependencies as deps
from registry.server.http import routing
from registry.server.http.documents import JsonBody
from registry.server.http.operation_router import OperationRouter
from registry.server.promotion import attestations
from registry.server.promotion.attestations import signatures
from registry.server.routes.openapi import declarations

router = OperationRouter()
attestation_router = OperationRouter()
Engines = Annotated[list[EngineText], Query(alias="engine", max_length=ENGINES_LIMIT)]
Slots = Annotated[int | None, Query(ge=1, le=10_000)]


@router.serves(evaluation_operations.CHECK_ADAPTER)
def check_adapter(session: deps.ReadSessionDep, _actor: deps.ActorDep, request: JsonBody[CheckRequest]) -> VerdictList:
    """Evaluate the header of an adapter that is not pushed. Nothing is stored."""
    return engine_compat.evaluate_files(session, request)


@router.serves(evaluation_operations.LIST_VERDICTS)
def list_verdicts(
    target: deps.VersionDep,
    engines: Engines = [],  # noqa: B006
) -> VerdictList:
    """List the verdicts of a version; with `engine`, evaluated now."""
    return engine_compat.evaluate_version(*target, engines)


@router.serves(evaluation_operations.SHOW_NORMS)
def show_norms(target: deps.VersionDep) -> NormsView:
    """Norms of the weights of a version, by module."""
    return weights.show_norms(*target)


@router.serves(evaluation_operations.RECOMMEND_ENGINE_SETTINGS)
def recommend_engine_settings(
    session: deps.SessionDep, actor: deps.ActorDep, base: str, engines: Engines, cursor: deps.CursorDep,
    slots: Slots = None, limit: deps.LimitDep = deps.PAGE,
) -> EngineSettingsList:  # fmt: skip
    """The engine settings that serve a page of the adapters of a base model. Clients combine the pages."""
    return engine_compat.settings_for_base(session, actor, base, engines, slots, cursor=cursor, limit=limit)


@attestation_router.serves(attestation_operations.LIST_ATTESTATIONS)
async def list_attestations(
    request: Request,
    actor: deps.ActorInThreadDep,
    engine: deps.EngineDep,
    name: deps.NameDep,
    selector: deps.SelectorDep,
    blobs: deps.BlobsDep,
    log: deps.AuditLogDep,
) -> AttestationList:
    """List the attestations of a version, oldest first, each with its bundle."""

    def read() -> AttestationList:
        with db.session(engine, write=False) as session:
            return attestations.list_attestations(session, actor, name, selector, blobs)

    await log.catch_up(attested=True)  # what was pushed just now
    return await routing.run_in_turn(request, read)


@attestation_router.serves(attestation_operations.SIGN_VERSION, responses=declarations.existing(AttestationView))
def sign_version(
    session: deps.KeyedSessionDep,
    actor: deps.ActorDep,
    name: deps.NameDep,
    selector: deps.SelectorDep,
    request: JsonBody[SignRequest],
    blobs: deps.BlobsDep,
    settings: deps.SettingsDep,
    response: Response,
) -> AttestationView:
    """Store a signature of a version. 201 for a new one, 200 for one that exists already."""
    view, new = signatures.add_signature(
        session, actor, name, selector, request, blobs, trusted_roots=settings.trusted_roots
    )
    response.status_code = 201 if new else 200
    return view
