"""The bytes of one file in the Hub API.

    small file   HEAD and GET are handled here; the ETag is the git id
    large file   GET redirects to a link of the store; HEAD gives the SHA-256 and the size (hub.md has a table)

Every response names the commit, also if the file does not exist: clients cache by it.
"""

from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from sqlalchemy import Engine

from registry import hub
from registry.digest import DigestPrefix
from registry.hub.shapes import File
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.models import VersionRow
from registry.server.http.conditional import BYTES_HEADERS, IMMUTABLE, REVALIDATE
from registry.server.http.dependencies import BlobsDep, EngineDep, Puller, SettingsDep
from registry.server.http.request_actor import record_read
from registry.server.hub import repositories, revisions
from registry.server.hub.revisions import Revision
from registry.server.routes.hub import protocol
from registry.server.routes.hub.protocol import HubRoute
from registry.server.routes.transfer import pulls
from registry.server.storage.blobs import BlobStore, attachment

router = APIRouter(route_class=HubRoute, include_in_schema=False)


@router.api_route("/{namespace}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"], response_model=None)
def read_file(
    request: Request, actor: Puller, engine: EngineDep, blobs: BlobsDep, settings: SettingsDep, revision: str, path: str
) -> Response:
    """A file, from here or from the store."""
    repository_file = _find(request, actor, engine, blobs, revision, path)
    file = repository_file.file.descriptor
    if request.method == "GET":
        repository_file.record_read(request)
    key = revisions.locate_bytes(engine, actor, blobs, repository_file.revision, file)
    redirects = (request.method == "GET" and not protocol.reads_metadata_only(request)) or protocol.is_legacy(request)
    is_local = not blobs.is_remote  # bytes of this machine are sent in this response
    can_redirect = not is_local and repository_file.revision.draft is None
    if hub.is_large(file) and redirects and can_redirect and not protocol.sends_token_on_redirect(request):
        url = blobs.presign_read(key, file.size_bytes, seconds=settings.link_seconds, file_name=file.path)
        if url is not None:
            if request.method != "GET":  # everyone with the link can read
                repository_file.record_read(request)
            headers = {**repository_file.headers, "Location": url, "Cache-Control": "no-store"}
            return Response(status_code=302, headers=headers)
    return pulls.bytes_response(request, blobs, key, file.size_bytes, repository_file.headers)


@router.api_route("/{namespace}/{name}/raw/{revision}/{path:path}", methods=["GET", "HEAD"], response_model=None)
def read_raw(request: Request, actor: Puller, engine: EngineDep, blobs: BlobsDep, revision: str, path: str) -> Response:
    """What git would store: a small file itself, the LFS pointer of a large one."""
    repository_file = _find(request, actor, engine, blobs, revision, path)
    file = repository_file.file.descriptor
    if hub.is_large(file):
        pointer = hub.pointer(file)
        headers = {**repository_file.headers, "ETag": f'"{hub.git_id(pointer)}"', "Accept-Ranges": "none"}
        return Response(pointer, headers=headers, media_type="text/plain")
    if request.method == "GET":
        repository_file.record_read(request)
    key = revisions.locate_bytes(engine, actor, blobs, repository_file.revision, file)
    return pulls.bytes_response(request, blobs, key, file.size_bytes, repository_file.headers)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file of a revision, and the headers of every response about it."""

    file: File
    revision: Revision
    headers: dict[str, str]

    def record_read(self, request: Request) -> None:
        """Record in the audit log that the actor reads bytes. Those of a draft may be from a version of others."""
        row = self.revision.row
        selector = row.number if isinstance(row, VersionRow) else DigestPrefix(f"sha256:{row.revision}")
        record_read(request, self.revision.name, selector)


def _find(request: Request, actor: Actor, engine: Engine, blobs: BlobStore, revision: str, path: str) -> FoundFile:
    name = repositories.parse_name(request.path_params["namespace"], request.path_params["name"])
    with db.session(engine, write=False) as session:
        target = revisions.find(session, actor, name, revision)
        commit = request.state.commit = target.commit
        repository_file = revisions.find_file(session, actor, target, path)
    file = revisions.add_git_ids(engine, blobs, target, [repository_file])[0]
    return FoundFile(file, target, _headers(file, commit, revision))


def _headers(file: File, commit: str, revision: str) -> dict[str, str]:
    descriptor = file.descriptor
    headers = {
        "ETag": f'"{file.etag}"',
        protocol.COMMIT_HEADER: commit,
        "Accept-Ranges": "bytes",
        "Cache-Control": IMMUTABLE if revision == commit else REVALIDATE,
        "Vary": "Authorization",
        **BYTES_HEADERS,
        "Content-Disposition": attachment(descriptor.path),
    }
    if hub.is_large(descriptor):
        headers |= {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(descriptor.size_bytes)}
    return headers


@router.api_route("/{name}/raw/{revision}/{path:path}", methods=["GET", "HEAD"], response_model=None)
@router.api_route("/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"], response_model=None)
def read_without_namespace(_actor: Puller, name: str) -> Response:
    """Names without a namespace do not exist here."""
    raise repositories.unknown_repository(name)
