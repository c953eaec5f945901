"""Routes of push and pull: plan, upload, commit; download plan, files, reports.

- A file is answered by a link of the store (307) if it has links, else from its path, else as a stream.
- Files are attachments with nosniff: a browser must not run what someone pushed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import BackgroundTasks, Depends, Request, Response
from fastapi.responses import StreamingResponse
from sqlmodel import Session
from starlette.datastructures import State

from registry.api.evaluation import ReferenceLogprobsView
from registry.api.transfer import CommitItem, PullPlan, PushCommit, PushItem, PushPlan, PushRequest, PushResult
from registry.digest import Digest
from registry.errors import Invalid, NotFound
from registry.events import EventType
from registry.findings import Finding
from registry.manifest import Descriptor
from registry.names import Selector
from registry.server.catalog import files
from registry.server.database import db
from registry.server.evaluation import engine_compat
from registry.server.http import bodies, routing
from registry.server.http.caching import cache_control, etag_matches
from registry.server.http.dependencies import (
    NO_TOKEN,
    VERSION,
    BlobsDep,
    EngineDep,
    KeyedSessionDep,
    NameDep,
    Puller,
    Pusher,
    ReadSessionDep,
    SelectorDep,
    SessionDep,
    SettingsDep,
)
from registry.server.http.ranges import BYTES_HEADERS, LINK_HEADERS, select_part
from registry.server.http.request_body import limit_body
from registry.server.push import background, commit, plan
from registry.server.push.group import only
from registry.server.routes.openapi import declarations
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore, attachment, digest_of, raise_unknown
from registry.server.storage.signed_links import SignedLink

router = routing.create_router("transfer")


def _blob_digest(digest: str) -> Digest:
    return Digest(digest)


DigestDep = Annotated[Digest, Depends(routing.as_coroutine(_blob_digest))]


# ------------------------------------------------------------------ push
@router.post("/adapters/{namespace}/{name}/pushes")
@limit_body(8 * 2**20)
def plan_push(
    session: ReadSessionDep,
    actor: Pusher,
    name: NameDep,
    request: PushRequest,
    blobs: BlobsDep,
    settings: SettingsDep,
    engine: EngineDep,
) -> PushPlan:
    """Plan a push: which blobs the registry lacks, and where to send each."""
    with background.push_in_progress(engine):
        item = PushItem(name=str(name), manifest=request.manifest, message=request.message)
        push_plan = only(plan.plan_pushes(session, actor, [item], blobs=blobs, settings=settings))
    background.expect_commit(engine, push_plan.push_id)
    return push_plan


@router.put("/pushes/{push_id}/blobs/{digest}", status_code=204, openapi_extra=declarations.RAW_BODY)
@limit_body(None)
def upload_blob(
    request: Request,
    session: ReadSessionDep,
    actor: Pusher,
    blobs: BlobsDep,
    engine: EngineDep,
    push_id: str,
    digest: DigestDep,
) -> Response:
    """Upload the bytes of one blob of the plan."""
    # The bytes arrive after this function returns: a slow sender must not hold a thread.
    expected = commit.find_upload(session, actor.token_id, push_id, digest)
    db.commit_early(session)
    _check_length(request, digest, expected.size_bytes)
    size_bytes = expected.size_bytes
    sink = commit.open_upload(engine, blobs, expected.key, limit_bytes=size_bytes) if expected.needed else None
    return bodies.UploadResponse(sink, upload_in_progress(request.app.state, actor.token_id, expected.key))


@contextmanager
def upload_in_progress(state: State, token_id: str, key: str) -> Iterator[None]:
    """Receive a blob in this context: uploads of a token and of a blob are limited, and background work waits."""
    in_progress = background.push_in_progress(state.engine)
    with state.upload_limiter.hold(token_id), state.blob_limiter.hold(key), in_progress:
        yield


@contextmanager
def link_upload_in_progress(state: State, token_id: str, key: str) -> Iterator[None]:
    """As `upload_in_progress`, by a signed link. `NotFound` if its push has ended."""
    with db.session(state.engine, write=False) as session:
        if not _find_link_upload(session, token_id, key).needed:
            raise_unknown(key)
    with upload_in_progress(state, token_id, key):
        yield


def _find_link_upload(session: Session, token_id: str, key: str) -> commit.ExpectedBlob:
    """What the push in a link's key still requests: a link may live longer than its push."""
    return commit.find_upload(session, token_id, key.split("/")[1], digest_of(key))


def _check_length(request: Request, digest: Digest, size_bytes: int) -> None:
    declared = request.headers.get("content-length")
    if declared is None or declared == str(size_bytes):
        return
    message = f"Content-Length is {declared[:20]}, but the plan expects {size_bytes} bytes"
    findings = [Finding("blob.size_mismatch", digest, message)]
    raise Invalid("BLOB_MISMATCH", f"blob {digest}: {message}", findings=findings)


async def _hold_commit_lock(request: Request, engine: EngineDep, push_id: str) -> None:
    """Declared before the session, so that the lock is held until the session has committed."""
    request.state.exit_stack.enter_context(background.commit_lock(engine, push_id))


@router.post(
    "/pushes/{push_id}/commit",
    status_code=201,
    responses=declarations.existing(PushResult),
    dependencies=[Depends(_hold_commit_lock)],
)
@limit_body(8 * 2**20)
def commit_push(
    incoming: Request,
    session: KeyedSessionDep,
    actor: Pusher,
    push_id: str,
    request: PushCommit,
    blobs: BlobsDep,
    response: Response,
    after: BackgroundTasks,
    engine: EngineDep,
    settings: SettingsDep,
) -> PushResult:
    """Create the version of a push. 201 for a new version, 200 for one that exists already."""
    engines = engine_compat.parse_setting(settings.engines)
    with background.push_in_progress(engine, push_id):
        item = CommitItem(push_id=push_id, alias=request.alias, small=request.small)
        pushed = only(commit.commit_pushes(session, actor, [item], blobs=blobs, engines=engines))
    response.status_code = 201 if pushed.created else 200
    response.headers.update(incoming.app.state.audit_log.checkpoint_header)
    after.add_task(routing.run_in_store_thread, commit.clean_up, engine, [push_id], blobs=blobs)
    return pushed


# ------------------------------------------------------------------ pull
@router.get(VERSION + "/pull")
def plan_pull(
    request: Request,
    session: SessionDep,
    actor: Puller,
    name: NameDep,
    selector: SelectorDep,
    blobs: BlobsDep,
    settings: SettingsDep,
    response: Response,
) -> PullPlan:
    """Plan a pull: the manifest, the bytes of small files, and links to large ones."""
    response.headers.update({"Cache-Control": "no-store", **request.app.state.audit_log.checkpoint_header})
    plan = files.plan_download(session, actor, name, selector, blobs=blobs, settings=settings)
    if plan.small or plan.direct:
        _record_read(request, selector)
    return plan


_FILE: dict[str, Any] = {
    "response_class": Response,
    "responses": declarations.FILE,
    "openapi_extra": declarations.FILE_HEADERS,
}


@router.head(VERSION + "/files/{path:path}", operation_id="head_file", **_FILE)
@router.get(VERSION + "/files/{path:path}", **_FILE)
def read_file(
    request: Request,
    session: SessionDep,
    actor: Puller,
    name: NameDep,
    selector: SelectorDep,
    path: str,
    blobs: BlobsDep,
    settings: SettingsDep,
) -> Response:
    """Read one file, from the registry or by a redirect (307) to its store."""
    file = files.find_file(session, actor, name, selector, path)
    db.commit_early(session)
    return _bytes_of(request, file, selector, blobs, settings)


@router.get(VERSION + "/reports/{digest}", **_FILE)
def read_report(
    request: Request,
    session: SessionDep,
    actor: Puller,
    name: NameDep,
    selector: SelectorDep,
    digest: DigestDep,
    blobs: BlobsDep,
    settings: SettingsDep,
) -> Response:
    """Read the report behind one verdict of this version."""
    file = files.find_report(session, actor, name, selector, digest)
    db.commit_early(session)
    return _bytes_of(request, file, selector, blobs, settings)


@router.get(VERSION + "/reference-logprobs")
def read_reference_logprobs(
    session: SessionDep, actor: Puller, name: NameDep, selector: SelectorDep, blobs: BlobsDep
) -> ReferenceLogprobsView:
    """Read the log-probabilities of fixed prompts from the newest smoke test of this version."""
    return files.find_reference_logprobs(session, actor, name, selector, blobs)


def _bytes_of(request: Request, file: Descriptor, selector: Selector, blobs: BlobStore, settings: Settings) -> Response:
    headers = {
        "ETag": f'"{file.digest}"',
        "Cache-Control": cache_control(selector),
        "Vary": "Authorization",
        **BYTES_HEADERS,
        "Content-Disposition": attachment(file.path),
    }
    if_none_match = request.headers.get("if-none-match", "")
    if if_none_match.strip() == "*" or etag_matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    _record_read(request, selector)
    key = files.locate_bytes(blobs, file)
    url = None
    if blobs.local_path(key) is None:  # bytes of this machine are sent in this answer
        seconds = settings.link_seconds
        url = blobs.presign_read(key, file.size_bytes, seconds=seconds, file_name=file.path, method=request.method)
    if url is not None:
        return Response(status_code=307, headers={"Location": url, "Cache-Control": "no-store"})
    return bytes_response(request, blobs, key, file.size_bytes, headers)


def _record_read(request: Request, selector: Selector) -> None:
    """Record in the audit log that the actor reads private bytes."""
    params, mark = request.path_params, "@" if isinstance(selector, int | Digest) else ":"
    about = f"{params['namespace']}/{params['name']}{mark}{selector}"
    request.app.state.audit_log.batch.add(
        request.state.actor, EventType.BYTES_READ, about, request_id=request.state.request_id
    )


def bytes_response(request: Request, blobs: BlobStore, key: str, size_bytes: int, headers: dict[str, str]) -> Response:
    """Send bytes of the store, or the requested part of them."""
    range_header, if_range = request.headers.get("range", ""), request.headers.get("if-range")
    part = select_part(range_header, if_range, headers["ETag"], size_bytes)
    if part.status == 416:
        return Response(status_code=416, headers=part.headers)
    headers |= part.headers
    if request.method == "HEAD":
        return Response(status_code=part.status, headers=headers, media_type=declarations.OCTETS)
    path = blobs.local_path(key)
    if path is not None:
        return bodies.FileRangeResponse(path, part.start, part.length, part.status, headers)
    chunks = blobs.open(key, part.start, part.length)
    return StreamingResponse(chunks, part.status, headers, media_type=declarations.OCTETS)


# ------------------------------------------------------------------ signed links of a local store
# Threads of `LinkListener` answer most of these requests.
@router.put("/links/{key:path}", status_code=204, dependencies=[NO_TOKEN], openapi_extra=declarations.RAW_BODY)
@limit_body(None)
def upload_by_link(request: Request, session: ReadSessionDep, blobs: BlobsDep, key: str) -> Response:
    """Upload a blob by a signed link of a plan, which needs no token."""
    link = _link_of(request, blobs)
    declared = request.headers.get("content-length")
    if declared is None:
        raise Invalid("LENGTH_REQUIRED", "a request with a link needs the Content-Length of its plan")
    _check_length(request, digest_of(key), link.size_bytes)
    is_needed = _find_link_upload(session, link.owner, key).needed
    db.commit_early(session)
    sink = blobs.open_writer(key, limit_bytes=link.size_bytes) if is_needed else None
    return bodies.UploadResponse(sink, upload_in_progress(request.app.state, link.owner, key))


@router.get("/links/{key:path}", dependencies=[NO_TOKEN], **_FILE)
def read_by_link(request: Request, blobs: BlobsDep, key: str) -> Response:
    """Read a blob by a signed link of a plan, which needs no token."""
    link = _link_of(request, blobs)
    stat = blobs.stat(key)
    if stat is None or stat.size_bytes != link.size_bytes:
        raise_unknown(key)
    headers = {"ETag": f'"{digest_of(key)}"', **LINK_HEADERS}
    return bytes_response(request, blobs, key, link.size_bytes, headers)


def _link_of(request: Request, blobs: BlobStore) -> SignedLink:
    if blobs.links is None:
        raise NotFound("ROUTE_UNKNOWN", "this registry signs no links")
    scope = request.scope
    target = b"?".join((scope["raw_path"], scope["query_string"])).decode("latin-1")
    return blobs.links.check(request.method, target)
