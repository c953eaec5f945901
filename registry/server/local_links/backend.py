"""How links are handled, by the thread with the socket or by the client in this process."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager

from registry.errors import Invalid, RegistryError
from registry.findings import Finding
from registry.server import failpoints
from registry.server.http.conditional import LINK_HEADERS, Part, select_part
from registry.server.http.problems import status_of
from registry.server.storage.blobs import BlobStore, BlobWriter, Bytes, digest_of, raise_unknown
from registry.server.storage.signed_links import SignedLink
from registry.structs import Value

_LOG = logging.getLogger("registry.server")
LinkResponse = tuple[int, dict[str, str], Iterator[bytes]]
"""Status, headers and body."""


class LinkBackend(Value, frozen=True):
    """What the handling of links needs of the server.

    `open_upload` is a context in which a blob is received. Its writer is None if the push has ended with a version:
    then the bytes are discarded.
    """

    blobs: BlobStore
    open_upload: Callable[[SignedLink], AbstractContextManager[BlobWriter | None]]
    stall_seconds: float
    is_stopping: Callable[[], bool]

    def receive(self, link: SignedLink, chunks: Iterable[Bytes]) -> None:
        """Write the body of a PUT. It is read only if the push is open and within its limits."""
        with self.open_upload(link) as writer:
            try:
                for chunk in chunks:
                    if writer is not None:
                        writer.write(chunk)
                    failpoints.reach("upload.half")
                failpoints.reach("upload.received")
                if writer is not None:
                    writer.finish()
                failpoints.reach("upload.written")
            except BaseException:
                if writer is not None:
                    writer.abort()
                raise

    def find_part(self, link: SignedLink, headers: Mapping[str, str]) -> Part:
        """Find the bytes that a GET with these headers, in lower case, reads; with the headers of the response."""
        stat = self.blobs.stat(link.key)
        if stat is None or stat.size_bytes != link.size_bytes:
            raise_unknown(link.key)
        etag = f'"{digest_of(link.key)}"'
        part = select_part(headers.get("range", ""), headers.get("if-range"), etag, link.size_bytes)
        if part.status == 416:
            return Part(416, 0, 0, {**part.headers, "Content-Length": "0"})
        return Part(part.status, part.start, part.length, {"ETag": etag, **LINK_HEADERS, **part.headers})

    def handle(self, method: str, target: str, headers: Mapping[str, str], body: Iterable[bytes]) -> LinkResponse:
        """Handle a request of this process by its link, in the caller's thread. Raises only what `body` raises."""
        failures: list[Exception] = []
        try:
            link = self.check(method, target, headers)
            if method == "PUT":
                self.receive(link, _read(body, failures))
                return 204, {}, iter(())
            part = self.find_part(link, headers)
            return part.status, part.headers, iter(self.blobs.open(link.key, part.start, part.length))
        except Exception as e:
            if failures:
                raise
            error = e if isinstance(e, RegistryError) else RegistryError("INTERNAL", "the server failed; see its log")
            if error is not e:
                _LOG.exception("%s by a link failed", method)
            status, content, more = problem_of(error, "in-process")
            return status, more, iter((content,))

    def check(self, method: str, target: str, headers: Mapping[str, str]) -> SignedLink:
        """Return what a request allows. `Unavailable` (LINK_INVALID), `Invalid` for a length that is not the link's."""
        if self.blobs.links is None:
            raise RuntimeError("this store signs no links")
        link = self.blobs.links.check(method, target)
        length = headers.get("content-length")
        if method == "PUT" and length is None:
            raise Invalid("LENGTH_REQUIRED", "a request with a link needs the Content-Length of its plan")
        if method == "PUT" and length != str(link.size_bytes):
            message = f"Content-Length is {str(length)[:20]}, but the plan expects {link.size_bytes} bytes"
            findings = [Finding("blob.size_mismatch", digest_of(link.key), message)]
            raise Invalid("BLOB_MISMATCH", f"blob {digest_of(link.key)}: {message}", findings=findings)
        return link


def _read(body: Iterable[bytes], failures: list[Exception]) -> Iterator[bytes]:
    """Yield the body, and note what its sender raises."""
    try:
        yield from body
    except Exception as e:
        failures.append(e)
        raise


def problem_of(error: RegistryError, request_id: str) -> tuple[int, bytes, dict[str, str]]:
    """Return the status, body and headers that tell a client of an error."""
    status = status_of(error)
    body = json.dumps(error.to_problem() | {"status": status, "request_id": request_id}).encode()
    headers = {"Content-Type": "application/problem+json", "Content-Length": str(len(body))}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    return status, body, headers
