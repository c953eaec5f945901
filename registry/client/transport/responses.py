"""Error responses as our exceptions, and other responses as schemas.

A problem document of the registry becomes the class that the server raised. Those of proxies, other programs and the
store become messages, never a parse error. The query of a link is never in a message: it holds a signature.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from registry import errors
from registry.client.transport import HttpResponse, TransportError, invalid_response
from registry.errors import Corrupt, Invalid, NotFound, RegistryError, TooLarge, Unauthenticated, Unavailable
from registry.next_steps import NextStep, StepKind
from registry.validation import UNKNOWN_FIELD, first_problem

Shape = TypeVar("Shape", bound=BaseModel)
_STORE_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,60})</Code>")
_MISMATCH = frozenset({"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"})
_PROXY = {
    408: "the request took too long", 429: "too many requests", 502: "the registry behind it cannot be reached",
    503: "the registry behind it is not available", 504: "the registry behind it took too long",
}  # fmt: skip
_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
"""In what OpenSSL says of a certificate that no trusted authority has signed."""
_STORE_NEXT_STEP = "try again once the store responds"
MANIFEST_FIELD = "manifest"
"""The field of a response whose value has a digest, so that this client must know all that is in it."""
_LATER = frozenset({408, 409, 429, 500, 502, 503, 504})
_REASON_LIMIT = 500
_REQUEST_ID_LIMIT = 200


def unreachable(url: str, error: TransportError) -> Unavailable:
    """The error for a broken connection to the registry, or to the store that it links to."""
    why, target = str(error), urlsplit(error.url)
    if error.url and (target.scheme, target.netloc) != (urlsplit(url).scheme, urlsplit(url).netloc):
        return Unavailable(
            "STORE_UNAVAILABLE",
            f"the store at {target.netloc} is unreachable: {why}",
            next_step="can this machine reach the address in the server's REGISTRY_S3_PUBLIC_ENDPOINT?",
        )
    next_step: NextStep | str = NextStep(StepKind.DIAGNOSE)
    if _UNTRUSTED in why:
        next_step = "if a private authority issued its certificate, set SSL_CERT_FILE to that authority's certificate"
    return Unavailable("SERVER_UNREACHABLE", f"the registry at {url} is unreachable: {why}", next_step=next_step)


def error_of(response: HttpResponse, url: str) -> RegistryError:
    """The exception of an error response, also of a proxy or another program."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if isinstance(problem, dict) and "code" in problem and not _is_of_proxy(response.status, problem):
        return error_of_problem(problem, response.headers.get("x-request-id") or "")
    return _error_of_proxy(response, url, problem)


def _is_of_proxy(status: int, problem: Mapping[str, Any]) -> bool:
    """Whether a document is of a program in front of the registry, which may name its errors `code` as well."""
    return (status == 413 or status in _PROXY) and str(problem["code"]) not in errors.CLASS_OF_CODE


def error_of_problem(problem: Mapping[str, Any], request_id: str = "") -> RegistryError:
    """The exception of a problem document. One that says nothing to this client names the request."""
    error = errors.from_problem(problem)
    request_id = str(problem.get("request_id") or request_id)[:_REQUEST_ID_LIMIT]
    if request_id and (type(error) is RegistryError or error.code == "RESPONSE_INVALID"):
        return type(error)(error.code, f"{error.detail}; request {request_id}", findings=error.findings)
    return error


def _error_of_proxy(response: HttpResponse, url: str, problem: Any) -> RegistryError:
    """The exception of an error response without a problem document: the registry always sends one."""
    status = response.status
    if status == 413:
        return TooLarge(
            "SIZE_INVALID",
            f"a proxy before {url} refused the body of this request as too large (413)",
            next_step="raise the proxy's limit of request bodies, such as client_max_body_size of nginx",
        )
    if status in _PROXY:
        reason = str(problem.get("reason", ""))[:_REASON_LIMIT] if isinstance(problem, dict) else ""  # of /health
        text = response.headers.get("retry-after", "")
        who = url if reason else f"a proxy before {url}"
        of_proxy = "is the registry behind the proxy running, and are the proxy's timeouts at least a minute?"
        return Unavailable(
            "SERVER_UNREACHABLE", f"{who} responded with {status}: {reason or _PROXY[status]}",
            next_step="try again later, or read the log of the server" if reason else of_proxy,
            retry_after_seconds=int(text) if text.isascii() and text.isdigit() and len(text) < 6 else None,
        )  # fmt: skip
    if status in (401, 403) and urlsplit(response.url).hostname == urlsplit(url).hostname:
        return Unauthenticated(
            "UNAUTHORIZED", f"{url} responded with {status} without a reason", next_step="adapter login URL"
        )
    if status == 404:
        return NotFound("ROUTE_UNKNOWN", f"{url} does not know this route: is it an adapter registry?")
    if status == 416:
        return Corrupt("DIGEST_MISMATCH", f"{response.url.partition('?')[0]} is shorter than the registry says")
    return invalid_response(f"{url} responded with {status} without a reason")


def store_error_of(response: HttpResponse) -> RegistryError:
    """The exception of a store's error response."""
    match = _STORE_CODE.search(response.content[:10_000])
    code = match[1].decode() if match else str(response.status)
    message = f"the store at {urlsplit(response.url).netloc} responded with {code}"
    if code in _MISMATCH:
        return Invalid("BLOB_MISMATCH", f"{message}: the bytes differ from those of the plan")
    if response.status in _LATER:
        return Unavailable("STORE_UNAVAILABLE", message, next_step=_STORE_NEXT_STEP)
    if response.status == 416:
        return Corrupt("DIGEST_MISMATCH", f"{message}: the file there is shorter than the registry says")
    return Unavailable("STORE_UNAVAILABLE", message, next_step="links expire: try again to get new ones")


def parse_response(response: HttpResponse, shape: type[Shape]) -> Shape:
    """The body of a response as this schema. `Corrupt` for another one: of another program, or damaged."""
    return parse_document(shape, response.content, urlsplit(response.url).path)


def parse_document(shape: type[Shape], data: bytes, path: str) -> Shape:
    """The body of the response to this path as this schema. `Corrupt`."""
    try:
        return read_tolerantly(shape, data)
    except ValueError as e:
        location, message = first_problem(e, "the document")
        raise invalid_response(f"the registry's response to {path} is not what we expect: {location}: {message}") from e
    except RegistryError as e:  # a rule of the domain, such as a manifest's
        raise invalid_response(f"the registry's response to {path} is not what we expect: {e.detail}") from e


def read_tolerantly(shape: type[Shape], data: bytes) -> Shape:
    """JSON as this schema, at every level without fields that it does not know: a newer server sends them (ADR 43).

    `ValueError` names the field that is wrong, such as an unknown one of a manifest: its digest covers every field.
    """
    try:
        return shape.model_validate_json(data)
    except ValidationError as e:
        errors = e.errors(include_url=False, include_input=False, include_context=False)
        if any(error["type"] in UNKNOWN_FIELD and MANIFEST_FIELD in error["loc"] for error in errors):
            raise
        return shape.model_validate_json(data, extra="ignore")
