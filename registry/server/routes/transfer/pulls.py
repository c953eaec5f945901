"""Routes of a pull: download plan, files, reports.

- The response for a file is a link of the store (307) if it has links, else from its path, else as a stream.
- Files are attachments with nosniff: a browser must not run what someone pushed.
"""

import os
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from registry.api import transfer
from registry.api.evaluation import ReferenceLogprobsView
from registry.api.operations import evaluation
from registry.api.operations import transfer as operations
from registry.digest import Digest
from registry.names import Ref
from registry.server.catalog import files
from registry.server.database import db
from registry.server.http import dependencies as deps
from registry.server.http import documents, routing
from registry.server.http.conditional import BYTES_HEADERS, cache_control, etag_matches, select_part
from registry.server.http.documents import JsonBody
from registry.server.http.operation_router import OperationRouter
from registry.server.http.problems import outcomes_of
from registry.server.http.request_actor import record_read
from registry.server.http.services import services_of
from registry.server.routes.openapi import declarations
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore, attachment
from registry.server.storage.local import LocalBlobs
from registry.versions.manifest import Descriptor

router = OperationRouter()


def _blob_digest(digest: str) -> Digest:
    return Digest(digest)


DigestDep = Annotated[Digest, Depends(routing.as_coroutine(_blob_digest))]


@router.serves(operations.PLAN_PULLS)
def plan_pulls(
    incoming: Request,
    session: deps.ReadSessionDep,
    actor: deps.ActorDep,
    request: JsonBody[transfer.BulkPullRequest],
    blobs: deps.BlobsDep,
    settings: deps.SettingsDep,
) -> Response:
    """Plan pulls: the manifests, the bytes of small files, and links to large ones."""
    outcomes, small = files.plan_downloads(session, actor, request.refs, blobs=blobs, settings=settings)
    sent = {item.digest for item in small}
    for ref, outcome in zip(request.refs, outcomes, strict=True):
        if isinstance(outcome, transfer.PullPlan) and (
            outcome.direct or any(f.digest in sent for f in outcome.resolved.files)
        ):
            parsed = Ref.parse(ref)
            record_read(incoming, parsed.name, parsed.selector)
    items = outcomes_of(incoming, outcomes, request.refs)
    plan = transfer.BulkPullPlan(items=[transfer.PlannedPull(**item) for item in items], small=small)
    return documents.respond(plan, {"Cache-Control": "no-store", **services_of(incoming).audit_log.checkpoint_header})


FILE: dict[str, Any] = {
    "responses": declarations.FILE,
    "openapi_extra": declarations.FILE_HEADERS,
}


@router.serves(operations.HEAD_FILE, **FILE)
@router.serves(operations.READ_FILE, **FILE)
def read_file(
    request: Request, target: deps.VersionDep, path: str, blobs: deps.BlobsDep, settings: deps.SettingsDep
) -> Response:
    """Read one file, from the registry or by a redirect (307) to its store."""
    file = files.find_file(*target, path)
    db.commit_early(target.session)
    return _bytes_of(request, file, target, blobs, settings)


@router.serves(operations.READ_REPORT, **FILE)
def read_report(
    request: Request, target: deps.VersionDep, digest: DigestDep, blobs: deps.BlobsDep, settings: deps.SettingsDep
) -> Response:
    """Read the report behind one verdict of this version."""
    file = files.find_report(*target, digest)
    db.commit_early(target.session)
    return _bytes_of(request, file, target, blobs, settings)


@router.serves(evaluation.READ_REFERENCE_LOGPROBS)
def read_reference_logprobs(target: deps.VersionDep, blobs: deps.BlobsDep) -> ReferenceLogprobsView:
    """Read the log-probabilities of fixed prompts from the newest smoke test of this version."""
    return files.find_reference_logprobs(*target, blobs)


def _bytes_of(
    request: Request, file: Descriptor, target: deps.VersionTarget, blobs: BlobStore, settings: Settings
) -> Response:
    headers = {
        "ETag": f'"{file.digest}"',
        "Cache-Control": cache_control(target.selector),
        "Vary": "Authorization",
        **BYTES_HEADERS,
        "Content-Disposition": attachment(file.path),
    }
    if_none_match = request.headers.get("if-none-match", "")
    if if_none_match.strip() == "*" or etag_matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    record_read(request, target.name, target.selector)
    key = files.locate_bytes(blobs, file)
    url = None
    if blobs.is_remote:  # bytes of this machine are sent in this response
        seconds = settings.link_seconds
        url = blobs.presign_read(key, file.size_bytes, seconds=seconds, file_name=file.path, method=request.method)
    if url is not None:
        return Response(status_code=307, headers={"Location": url, "Cache-Control": "no-store"})
    return bytes_response(request, blobs, key, file.size_bytes, headers)


def bytes_response(request: Request, blobs: BlobStore, key: str, size_bytes: int, headers: dict[str, str]) -> Response:
    """Send bytes of the store, or the requested part of them."""
    range_header, if_range = request.headers.get("range", ""), request.headers.get("if-range")
    part = select_part(range_header, if_range, headers["ETag"], size_bytes)
    if part.status == 416:
        return Response(status_code=416, headers=part.headers)
    headers |= part.headers
    if request.method == "HEAD":
        return Response(status_code=part.status, headers=headers, media_type=declarations.OCTETS)
    if isinstance(blobs, LocalBlobs):
        return FileRangeResponse(blobs.local_path(key), part.start, part.length, part.status, headers)
    chunks = blobs.open(key, part.start, part.length)
    body = routing.stream_in_threads(chunks)
    response = StreamingResponse(body, part.status, headers, media_type=declarations.OCTETS)
    response.held_bytes = READ_BYTES  # type: ignore[attr-defined]
    return response


# ------------------------------------------------------------------ files of a local store
READ_BYTES = 2**19
"""How much of a file is in memory for each client."""


class FileRangeResponse(Response):
    """Sends a range of a file by the event loop, which holds no thread for a slow peer."""

    held_bytes = READ_BYTES

    def __init__(self, path: Path, start: int, length: int, status_code: int, headers: dict[str, str]) -> None:
        super().__init__(None, status_code, {**headers, "Content-Length": str(length)}, "application/octet-stream")
        self._path = path
        self._start = start
        self._length = length

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the interface of ASGI
        descriptor = await run_in_threadpool(os.open, self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            start, end = self._start, self._start + self._length
            while start < end:
                chunk = await run_in_threadpool(os.pread, descriptor, min(READ_BYTES, end - start), start)
                if not chunk:
                    raise EOFError(f"{self._path} became shorter while it was sent")
                start += len(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            os.close(descriptor)
