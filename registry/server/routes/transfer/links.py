"""Signed links of a plan: upload and read one blob. The signature stands in for a token (`storage/signed_links.py`).

An upload is hashed and written in threads while it arrives, and its response follows once it is forced to disk.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack

from anyio import move_on_after
from fastapi import Depends, Request, Response

from registry.api import LINKS
from registry.api.operations import transfer as operations
from registry.errors import Invalid, RegistryError
from registry.findings import Finding
from registry.server import failpoints
from registry.server.http import dependencies as deps
from registry.server.http import routing
from registry.server.http.conditional import LINK_HEADERS
from registry.server.http.operation_router import OperationRouter
from registry.server.http.services import services_of
from registry.server.push.receive import PushWriter
from registry.server.routes.openapi import declarations
from registry.server.routes.transfer import pushes
from registry.server.routes.transfer.pulls import FILE, bytes_response
from registry.server.storage.blobs import BlobStore, digest_of, raise_unknown
from registry.server.storage.signed_links import SignedLink

router = OperationRouter()
UPLOAD_PIECE_BYTES = 2**20
"""How much of an upload is collected in memory before a thread hashes and writes it."""
LINGER_SECONDS = 2.0
"""How long a client that still sends may take to read why its body was refused."""


@router.serves(
    operations.UPLOAD_BY_LINK,
    dependencies=[Depends(routing.allow_any_query)],
    openapi_extra=declarations.RAW_BODY,
)
async def upload_by_link(request: Request, key: str, blobs: deps.BlobsHandleDep) -> Response:  # noqa: ARG001 - documented
    """Upload a blob by a signed link of a plan, which needs no token."""
    request.state.unread_body = True
    link = _check(request, blobs)
    body = request.stream()
    try:
        with ExitStack() as stack:
            receiving = pushes.receive_upload(services_of(request), link)
            writer = await routing.run_in_store_thread(stack.enter_context, receiving)
            await _receive(body, _Upload(writer))
    except RegistryError:  # a connection that is closed with unread bytes takes back what it has responded
        with move_on_after(LINGER_SECONDS):
            async for _ in body:
                pass
            request.state.unread_body = False
        raise
    request.state.unread_body = False
    return Response(status_code=204)


@router.serves(operations.READ_BY_LINK, dependencies=[Depends(routing.allow_any_query)], **FILE)
def read_by_link(request: Request, key: str, blobs: deps.BlobsDep) -> Response:  # noqa: ARG001 - documented
    """Read a blob by a signed link of a plan, which needs no token."""
    link = _check(request, blobs)
    stat = blobs.stat(link.key)
    if stat is None or stat.size_bytes != link.size_bytes:
        raise_unknown(link.key)
    headers = {"ETag": f'"{digest_of(link.key)}"', **LINK_HEADERS}
    return bytes_response(request, blobs, link.key, link.size_bytes, headers)


def _check(request: Request, blobs: BlobStore) -> SignedLink:
    """Return what a request allows. `Unavailable` (LINK_INVALID), `Invalid` for a length that is not the link's."""
    if blobs.links is None:
        raise RuntimeError("this store signs no links")
    target = b"?".join((request.scope["raw_path"], request.scope["query_string"])).decode("latin-1")
    link = blobs.links.check(request.method, target)
    request.state.log_actor, request.state.route = link.owner, f"{LINKS}{{key}}"
    length = request.headers.get("content-length")
    if request.method == "PUT" and length is None:
        raise Invalid("LENGTH_REQUIRED", "a request with a link needs the Content-Length of its plan")
    if request.method == "PUT" and length != str(link.size_bytes):
        message = f"Content-Length is {str(length)[:20]}, but the plan expects {link.size_bytes} bytes"
        findings = [Finding("blob.size_mismatch", digest_of(link.key), message)]
        raise Invalid("BLOB_MISMATCH", f"blob {digest_of(link.key)}: {message}", findings=findings)
    return link


async def _receive(chunks: AsyncIterator[bytes], upload: "_Upload") -> None:
    part: list[bytes] = []
    part_bytes = 0
    try:
        async for chunk in chunks:
            part.append(chunk)
            part_bytes += len(chunk)
            if part_bytes >= UPLOAD_PIECE_BYTES:
                await routing.run_in_store_thread(upload.write, part)
                part, part_bytes = [], 0
        await routing.run_in_store_thread(upload.finish, part)
    except Exception:
        await routing.run_in_store_thread(upload.abort)
        raise
    except BaseException:  # the server stops, and nothing can be awaited any more
        upload.abort()
        raise


class _Upload:
    """What threads do with a body. Without a writer the push has ended with a version, and the bytes are discarded."""

    def __init__(self, writer: PushWriter | None) -> None:
        self._writer = writer

    def write(self, part: Iterable[bytes]) -> None:
        for chunk in part:
            if self._writer is not None and chunk:
                self._writer.write(chunk)
        failpoints.reach("upload.half")

    def finish(self, last: Iterable[bytes]) -> None:
        self.write(last)
        failpoints.reach("upload.received")
        if self._writer is not None:
            self._writer.finish()
        failpoints.reach("upload.written")

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.abort()
