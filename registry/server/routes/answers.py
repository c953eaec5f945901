"""What every route may answer, as the OpenAPI document says it: its own answers, and the problems that any may have.

Invariants
- The document is made when it is asked for, and costs a start nothing.
- A status that is not in it is a bug, and a test that sends what the document allows looks for one (tests/access).

Example
    >>> answers.document(app)["paths"]["/api/v1/whoami"]["get"]["responses"]["401"]["description"]
    'Sign in'
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

PROBLEMS = {
    400: "The request cannot be read",
    401: "Sign in",
    403: "Not allowed",
    404: "Not there, or not for you to see",
    408: "The body stalled",
    409: "The world moved",
    412: "Somebody moved it since you looked",
    413: "Over a limit",
    415: "A file of this kind is never taken",
    422: "The input breaks a rule, or it is understood and refused",
    428: "A precondition is required",
    429: "Too often; wait as long as Retry-After says",
    503: "Try again later",
}
BYTES = (200, 206, 304, 307, 416)
ALSO: dict[tuple[str, str], tuple[int, ...]] = {
    ("get", "/resolve/{namespace}/{name}/{selector}"): (304,),
    ("get", "/adapters/{namespace}/{name}/versions/{selector}/files/{path}"): BYTES,
    ("head", "/adapters/{namespace}/{name}/versions/{selector}/files/{path}"): BYTES,
    ("get", "/adapters/{namespace}/{name}/versions/{selector}/reports/{digest}"): BYTES,
    ("post", "/pushes/{push_id}/commit"): (200,),
    ("post", "/bases"): (200,),
    ("get", "/health"): (503,),
}
"""Answers that a route chooses at run time, beside the one that it declares."""

_PROBLEM = {
    "type": "object",
    "required": ["title", "status", "code", "detail", "request_id"],
    "properties": {name: {"type": "string"} for name in ("title", "code", "detail", "request_id", "next_step")}
    | {"status": {"type": "integer"}, "findings": {"type": "array", "items": {"type": "object"}}},
}


def document(app: FastAPI, prefix: str) -> dict[str, Any]:
    """The OpenAPI document of the application: FastAPI's, with every status that a route may have."""
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    found.setdefault("components", {}).setdefault("schemas", {})["Problem"] = _PROBLEM
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            told: dict[str, Any] = operation["responses"]
            for status, description in PROBLEMS.items():
                told[str(status)] = _problem(description)
            for status in ALSO.get((method, path.removeprefix(prefix)), ()):
                told.setdefault(str(status), {"description": HTTPStatus(status).phrase})
    return found


def _problem(description: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": description, "content": {"application/problem+json": {"schema": schema}}}
