"""Routes of a push: plan, upload, commit."""

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import BackgroundTasks, Depends, Request, Response

from registry.api import transfer
from registry.api.operations import transfer as operations
from registry.digest import Digest
from registry.errors import RegistryError
from registry.server.database import db
from registry.server.evaluation import engine_profiles
from registry.server.http import dependencies as deps
from registry.server.http import documents, routing
from registry.server.http.documents import JsonBody
from registry.server.http.operation_router import OperationRouter
from registry.server.http.problems import outcomes_of
from registry.server.http.services import Services, services_of
from registry.server.push import background, commit, plan
from registry.server.push.receive import PushWriter
from registry.server.storage.blobs import digest_of
from registry.server.storage.signed_links import SignedLink

router = OperationRouter()


@router.serves(operations.PLAN_PUSHES)
def plan_pushes(
    incoming: Request,
    session: deps.ReadSessionDep,
    actor: deps.ActorDep,
    request: JsonBody[transfer.BulkPushRequest],
    blobs: deps.BlobsDep,
    settings: deps.SettingsDep,
    engine: deps.EngineDep,
) -> Response:
    """Plan pushes: which blobs the registry lacks, and where to send each."""
    with background.push_in_progress(engine):
        outcomes = plan.plan_pushes(session, actor, request, blobs=blobs, settings=settings)
    background.expect_commits(engine, [o.push_id for o in outcomes if isinstance(o, transfer.PushPlan) and o.push_id])
    items = outcomes_of(incoming, outcomes, [item.name for item in request.items])
    return documents.respond(transfer.BulkPushPlan(items=[transfer.PlannedPush(**item) for item in items]))


@contextmanager
def receive_upload(services: Services, link: SignedLink) -> Iterator[PushWriter | None]:
    """Receive a blob of a push in this context, where background work waits; None once its version exists.

    A link may live longer than its push: `NotFound` if that has expired. One that was planned a moment ago is open, and
    its signature says the rest. `Unavailable` (RATE_LIMITED) for too many uploads of one token or of one blob.
    """
    push_id = link.key.split("/")[1]
    if not background.was_planned(services.engine, push_id, hold_seconds=services.settings.push_hold_seconds):
        with db.session(services.engine, write=False) as session:
            is_needed = commit.find_upload(session, link.owner, push_id, digest_of(link.key))
        if not is_needed:
            yield None
            return
    in_progress = background.push_in_progress(services.engine)
    with services.upload_limiter.hold(link.owner), services.blob_limiter.hold(link.key), in_progress:
        yield PushWriter(services.engine, services.blobs, push_id, digest_of(link.key), link.size_bytes)


async def _hold_commit_lock(request: Request, engine: deps.EngineDep) -> None:
    """Declared before the session, so that the lock is held until the session has committed."""
    digest = Digest.of(request.state.body)
    request.state.exit_stack.enter_context(background.commit_lock(engine, digest))


@router.serves(
    operations.COMMIT_PUSHES,
    dependencies=[Depends(_hold_commit_lock)],
)
def commit_pushes(
    incoming: Request,
    session: deps.KeyedSessionDep,
    actor: deps.ActorDep,
    request: JsonBody[transfer.BulkCommitRequest],
    blobs: deps.BlobsDep,
    after: BackgroundTasks,
    engine: deps.EngineDep,
    settings: deps.SettingsDep,
) -> Response:
    """Create the versions of pushes. `created` is false for one that exists already."""
    engines = engine_profiles.parse_setting(settings.engines)
    push_ids = [item.push_id for item in request.items]
    with background.push_in_progress(engine, push_ids):
        outcomes = commit.commit_pushes(
            session, actor, request.items, atomic=request.atomic, blobs=blobs, engines=engines
        )
    refused = [id_ for id_, outcome in zip(push_ids, outcomes, strict=True) if isinstance(outcome, RegistryError)]
    after.add_task(routing.run_in_store_thread, commit.clean_up, engine, push_ids, blobs=blobs, refused=refused)
    items = outcomes_of(incoming, outcomes, push_ids)
    result = transfer.BulkPushResult(items=[transfer.CommittedPush(**item) for item in items])
    return documents.respond(result, services_of(incoming).audit_log.checkpoint_header, after)
