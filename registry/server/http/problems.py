"""Error responses: the status of each error, and exception handlers that respond with problem documents (RFC 9457).

- Every error response is application/problem+json with status, code, title, detail, findings and request id; clients of
  the Hub get application/json.
- Input never causes a 500. A 500 reveals nothing about the server and is logged with its request id.
"""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.requests import ClientDisconnect

from registry import errors
from registry.api.models import Problem
from registry.errors import Invalid, NotFound, Refused, RegistryError, Unavailable
from registry.findings import Finding
from registry.hub import absent
from registry.server.http.idempotency import store_no_response
from registry.server.http.request_actor import record_failure
from registry.server.http.routing import SingleThreadRoute
from registry.server.http.services import services_of
from registry.validation import location_of, rule_of

STATUS_OF_CLASS: dict[type[RegistryError], int] = {
    errors.NotFound: 404,
    errors.Invalid: 422,
    errors.TooLarge: 413,
    errors.Conflict: 409,
    errors.Refused: 422,
    errors.Unauthenticated: 401,
    errors.Denied: 403,
    errors.Unavailable: 503,
    errors.Corrupt: 500,
    errors.LocalFault: 500,
    errors.RegistryError: 500,
}
STATUS_OF_CODE = {
    "REQUEST_INVALID": 400,
    "DIGEST_INVALID": 400,
    "FILE_REFUSED": 415,
    "PRECONDITION_REQUIRED": 428,
    "ALIAS_MOVED": 412,
    "PARENT_MOVED": 412,
    "BODY_STALLED": 408,
    "UPLOAD_INCOMPLETE": 422,
    "LINK_INVALID": 403,
    "LENGTH_REQUIRED": 411,
    "RATE_LIMITED": 429,
    "HUB_UNSUPPORTED": 501,
}
"""Codes whose status differs from that of their class."""

DENIALS = (errors.Unauthenticated, errors.Denied, errors.NotFound)
"""Errors that the audit log records, in batches."""
FINDINGS_LIMIT = 50
HEADER_CHARACTERS = 1000
_LOG = logging.getLogger("registry.server")


def status_of(error: RegistryError) -> int:
    """Return the HTTP status of an error."""
    own = next(cls for cls in type(error).__mro__ if cls in STATUS_OF_CLASS)
    return STATUS_OF_CODE.get(error.code) or STATUS_OF_CLASS[own]


def codes_by_status() -> dict[int, list[str]]:
    """Return status → the sorted codes of errors that have it."""
    codes: dict[int, list[str]] = {}
    for cls, status in STATUS_OF_CLASS.items():
        for code in cls.CODES:
            codes.setdefault(STATUS_OF_CODE.get(code, status), []).append(code)
    return {status: sorted(codes[status]) for status in sorted(codes)}


def add_exception_handlers(app: FastAPI) -> None:
    """Handle every exception of a route with a problem document."""
    app.add_exception_handler(RegistryError, _handle_registry_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    unread = Unavailable("BODY_STALLED", "the client disconnected before the body was complete")
    app.add_exception_handler(ClientDisconnect, lambda request, _: problem_response(request, unread))  # else a bug
    unreadable = Invalid("REQUEST_INVALID", "the body is not readable JSON")
    app.add_exception_handler(400, lambda request, _: problem_response(request, unreadable))
    app.add_exception_handler(404, _handle_unknown_route)
    app.add_exception_handler(405, _handle_unknown_method)
    app.add_exception_handler(Exception, _handle_bug)


def problem_of_item(request: Request, error: RegistryError, about: str) -> Problem:
    """The problem of one item of a bulk request, logged and recorded like the error of a whole request."""
    _report(request, error, about)
    return Problem.model_validate(
        error.to_problem() | {"status": status_of(error), "request_id": request.state.request_id}
    )


def outcomes_of(request: Request, outcomes: Sequence[object], about: Sequence[str]) -> list[dict[str, Any]]:
    """Each result of a bulk request, or the problem of the item that `about` names.

    With an error among them, the response is not stored under the key of the request.
    """
    if any(isinstance(outcome, RegistryError) for outcome in outcomes):
        store_no_response(request)
    return [
        {"problem": problem_of_item(request, outcome, name)}
        if isinstance(outcome, RegistryError)
        else {"result": outcome}
        for outcome, name in zip(outcomes, about, strict=True)
    ]


def problem_response(request: Request, error: RegistryError, *, status: int | None = None) -> Response:
    """Return the response for an error, with the headers that its route adds."""
    status = status or status_of(error)
    request.scope["state"] |= {"problem": error.code, "problem_detail": error.detail if status >= 500 else ""}
    body = error.to_problem() | {"status": status, "request_id": request.state.request_id}
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    route = request.scope.get("route")
    respond = route.error_response if isinstance(route, SingleThreadRoute) else _page_for_browser
    own_response = respond(request, error, status)
    if own_response is not None:
        own_response.headers.update(headers)
        return own_response
    hub_headers = route.error_headers(request, error) if isinstance(route, SingleThreadRoute) else {}
    if route is None and error.code == "HUB_UNSUPPORTED":
        hub_headers = {"X-Error-Message": header_text(f"{error.detail}; {error.next_step}")}
        if status == 404:
            hub_headers["X-Error-Code"] = "RepoNotFound"
    if hub_headers:
        body["error"] = hub_headers["X-Error-Message"]
        if error.detail not in body["error"]:  # which is what clients of the Hub compare, or shortened
            body["errors"] = [{"message": error.detail}]
    elif route is None:  # a Hub client may request what `absent` does not know
        headers["X-Error-Message"] = header_text(error.detail)
    media_type = "application/json" if hub_headers else "application/problem+json"  # Hub clients read no other
    return Response(json.dumps(body), status, headers | hub_headers, media_type=media_type)


def _page_for_browser(request: Request, error: RegistryError, status: int) -> Response | None:
    """Return a page about an address without a route, for a browser and outside of the REST API."""
    is_for_browser = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")
    render: Callable[[Request, RegistryError, int], Response] | None = services_of(request).error_page
    return render(request, error, status) if render is not None and is_for_browser else None


def header_text(text: str) -> str:
    """Return a text as the value of a header: printable ASCII, the start of it."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)[:HEADER_CHARACTERS]


def _handle_registry_error(request: Request, exception: Exception) -> Response:
    error = exception if isinstance(exception, RegistryError) else RegistryError("INTERNAL", "the server failed")
    _report(request, error)
    return problem_response(request, error)


def _report(request: Request, error: RegistryError, about: str = "") -> None:
    """Log failures of the server, and record denials. `about` names one item of a request."""
    if about and status_of(error) >= 500 and not isinstance(error, Refused):  # 501 is not a failure of the server
        # The line of the request names, and counts, only the error of the whole.
        meter = services_of(request).requests.meter
        if error.code == "STORE_UNAVAILABLE" and meter is not None:
            meter.count_store_error()
        if error.code != "TRY_LATER":
            _LOG.error("request %s: %s: %s", request.state.request_id, error.code, error.detail)
    if isinstance(error, DENIALS):
        services_of(request).audit_log.batch.add_denial(
            request.scope, type(error).__name__, about=about, reason=error.operator_detail
        )


def _handle_validation_error(request: Request, exception: Exception) -> Response:
    """Turn pydantic's errors into findings. Where no token is needed they count as failed sign-ins."""
    route = request.scope.get("route")
    if isinstance(route, SingleThreadRoute) and route.needs_no_token and request.method == "POST":
        try:
            record_failure(request)
        except Unavailable as e:
            return problem_response(request, e)
    errors = exception.errors() if isinstance(exception, RequestValidationError) else []
    items = [error for before, error in zip([{"loc": ()}, *errors], errors, strict=False) if not _is_cut(before, error)]
    findings = [_finding(item) for item in items[:FINDINGS_LIMIT]]
    first = f"{findings[0].location}: {findings[0].message}" if findings else "the request cannot be read"
    more = f" (and {len(items) - 1} more)" if len(items) > 1 else ""
    return problem_response(request, Invalid("REQUEST_INVALID", first + more, findings=findings))


def _is_cut(before: Any, error: Any) -> bool:
    """Whether a collection is too short only because it was not read beyond a wrong entry, the error before."""
    location = error["loc"]
    return bool(error["type"] == "too_short" and location == before["loc"][: len(location)])


def _finding(item: Any) -> Finding:
    return Finding(f"request.{item['type'].replace('-', '_')}", location_of(item)[:300], rule_of(item)[:500])


def _handle_unknown_route(request: Request, _exception: Exception) -> Response:
    path = request.url.path
    error = absent.explain(path) or NotFound("ROUTE_UNKNOWN", f"there is no route {path[:200]!r}")
    is_question = request.method in ("GET", "HEAD") and absent.is_other_repository(path)
    return problem_response(request, error, status=404 if is_question else None)


def _handle_unknown_method(request: Request, exception: Exception) -> Response:
    error = NotFound("ROUTE_UNKNOWN", f"{request.url.path[:200]!r} does not support {request.method}")
    response = problem_response(request, error, status=405)
    response.headers.update(getattr(exception, "headers", None) or {})  # Allow: the methods that it supports
    return response


def _handle_bug(request: Request, exception: Exception) -> Response:
    _LOG.exception("request %s failed", request.state.request_id, exc_info=exception)
    error = RegistryError("INTERNAL", "the server failed; its log has the request id")
    response = problem_response(request, error)
    response.headers["X-Request-Id"] = request.state.request_id  # this handler runs outside of RequestMiddleware
    return response
