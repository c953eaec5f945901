"""The bytes of one file, in the Hub's dialect.

    small file   HEAD and GET are answered from here, the ETag is the git id
    large file   GET is a redirect to a fresh link of the store; HEAD tells the SHA-256 and the size
                 for huggingface_hub 0.x HEAD is the redirect, too; the Rust client gets the bytes from here
                 a GET of its first byte alone is a question about it (JavaScript, Rust): answered from here

Invariants
- A link to the store is only given where the client that asks will not take its token along (see hub.md's table).
- Every answer names the commit, also that there is no such file: clients cache by it.

Example
    HEAD /acme/support/resolve/prod/adapter_model.safetensors
"""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from sqlalchemy import Engine

from registry import hub as words
from registry.events import EventType
from registry.hub.shapes import File
from registry.server import hub
from registry.server.actors import Actor
from registry.server.catalog import files
from registry.server.database import db
from registry.server.hub import gits
from registry.server.routes import transfer
from registry.server.routes.adapters import ASK_AGAIN, FOR_EVER
from registry.server.routes.deps import BlobsDep, EngineDep, Puller, SettingsDep
from registry.server.routes.hub import dialect
from registry.server.routes.hub.dialect import HubRoute
from registry.server.storage.blobs import BlobStore

router = APIRouter(route_class=HubRoute, include_in_schema=False)


@router.api_route("/{namespace}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"], response_model=None)
def resolve(
    request: Request,
    actor: Puller,
    engine: EngineDep,
    blobs: BlobsDep,
    settings: SettingsDep,
    revision: str,
    path: str,
) -> Response:
    looked = _look(request, actor, engine, blobs, revision, path)
    found, headers = looked.file.descriptor, looked.headers
    if request.method == "GET":
        looked.note(request, actor)
    key = files.key_in(blobs, found)
    redirected = (request.method == "GET" and not dialect.only_looks(request)) or dialect.is_of_old(request)
    if words.is_large(found) and redirected and not dialect.takes_token_along(request):
        link = blobs.presign(key, seconds=settings.link_seconds, method="GET", file_name=found.path)
        if link is not None:
            return Response(status_code=302, headers={**headers, "Location": link.url, "Cache-Control": "no-store"})
    return transfer.from_here(request, blobs, key, found.size_bytes, headers)


@router.api_route("/{namespace}/{name}/raw/{revision}/{path:path}", methods=["GET", "HEAD"], response_model=None)
def raw(
    request: Request,
    actor: Puller,
    engine: EngineDep,
    blobs: BlobsDep,
    revision: str,
    path: str,
) -> Response:
    """What git would hold: a small file itself, the pointer of a large one."""
    looked = _look(request, actor, engine, blobs, revision, path)
    found = looked.file.descriptor
    if words.is_large(found):
        text = words.pointer(found)
        headers = {**looked.headers, "ETag": f'"{words.git_id(text)}"', "Accept-Ranges": "none"}
        return Response(text, headers=headers, media_type="text/plain")
    if request.method == "GET":
        looked.note(request, actor)
    return transfer.from_here(request, blobs, files.key_in(blobs, found), found.size_bytes, looked.headers)


@dataclass(frozen=True, slots=True)
class Looked:
    """A file at a revision, and what every answer about it says in its headers."""

    file: File
    about: str
    headers: dict[str, str]

    def note(self, request: Request, actor: Actor) -> None:
        request.app.state.audit_log.batch.add(
            actor, EventType.BYTES_READ, self.about, request_id=request.state.request_id
        )


def _look(request: Request, actor: Actor, engine: Engine, blobs: BlobStore, revision: str, path: str) -> Looked:
    called = hub.name(request.path_params["namespace"], request.path_params["name"])
    with db.session(engine, write=False) as session:
        row = hub.version(session, actor, called, revision)
        commit = request.state.commit = words.commit_id(row.digest)
        found = hub.file(session, actor, called, row, path)
    file = gits.known(engine, blobs, row.id, [found])[0]
    return Looked(file, f"{called}@{row.number}", _headers(file, commit, revision))


def _headers(file: File, commit: str, revision: str) -> dict[str, str]:
    descriptor = file.descriptor
    headers = {
        "ETag": f'"{file.etag}"',
        dialect.COMMIT: commit,
        "Accept-Ranges": "bytes",
        "Cache-Control": FOR_EVER if revision == commit else ASK_AGAIN,
        "Vary": "Authorization",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Content-Disposition": f'attachment; filename="{descriptor.path.rsplit("/", 1)[-1]}"',
    }
    if words.is_large(descriptor):
        headers |= {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(descriptor.size_bytes)}
    return headers


@router.api_route("/{name}/raw/{revision}/{path:path}", methods=["GET", "HEAD"], response_model=None)
@router.api_route("/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"], response_model=None)
def resolve_unnamed(_actor: Puller, name: str) -> Response:
    """A name without a namespace: none of ours."""
    raise hub.no_repository(name)
