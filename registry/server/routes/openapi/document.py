"""Builds the OpenAPI document: FastAPI's, with the scope, the errors and the described parameters of each operation.

It depends on the code only, not on settings or rows. A status that an operation lacks is a bug: a test sends what the
document allows and looks for one (tests/access).
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

from registry import __version__
from registry.api.models import Problem
from registry.api.operations.table import OPERATIONS, TAGS
from registry.server.http import idempotency
from registry.server.http.problems import codes_by_status
from registry.server.http.routing import SingleThreadRoute
from registry.server.routes.openapi.descriptions import PARAMETERS, describe, describe_fields

PROBLEMS = {
    400: ("BadRequest", "The request cannot be read."),
    401: ("Unauthorized", "No token, or one that is not valid."),
    403: ("Forbidden", "The token lacks the scope, or its owner lacks the right."),
    404: ("NotFound", "It does not exist, or the caller may not see it."),
    408: ("RequestTimeout", "The body stalled."),
    409: ("Conflict", "The resource changed since the caller read it, or exists already."),
    411: ("LengthRequired", "The request needs `Content-Length`."),
    412: ("PreconditionFailed", "The alias moved since the caller read it: read its generation again."),
    413: ("ContentTooLarge", "The input is over a limit or a quota."),
    415: ("UnsupportedFile", "A version holds no file of this kind."),
    422: ("Unprocessable", "The input breaks a rule, or the registry refuses to do this."),
    428: ("PreconditionRequired", "The request needs `If-Match`."),
    429: ("TooManyRequests", "Retry after the seconds in `Retry-After`."),
    500: ("ServerError", "The server failed. Its log has the request id."),
    503: ("Unavailable", "Database or store is unavailable. Retry after the seconds in `Retry-After`."),
}
"""Status → name and description of the error response that operations share."""

DESCRIPTION = """REST API of a registry of LoRA adapters.

Send `Authorization: Bearer TOKEN`; each operation names the scope that the token needs. Errors share one shape,
`Problem`. Responses may gain fields in later releases; requests with unknown fields are refused. Every response has
`X-Request-Id`.

The API for Hugging Face clients is not part of this document: it follows their protocol."""
BEARER = """A secret that begins with `lra_`, from `POST /tokens`, or from `POST /tokens/exchange`
for an identity token.

Each operation names the scope that the token needs; `admin` includes every scope, and every scope but `metrics`
includes `pull`."""
_REFERENCE = re.compile(r'"#/components/schemas/([^"]+)"')
_REFERENCE_TO = "#/components/schemas/{model}"
_ONLY_REFERRED: tuple[type[BaseModel], ...] = (
    Problem,
    *(row.request for row in OPERATIONS.values() if issubclass(row.request, BaseModel)),
)
"""What operations refer to, while FastAPI neither reads nor writes it."""
_FILE_OPERATIONS = frozenset({"plan_pushes", "commit_pushes", "check_adapter"})
"""Operations that read file names from their body."""


def document(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The OpenAPI document of these routes."""
    content = get_openapi(
        title="Adapter registry",
        version=__version__,
        description=DESCRIPTION,
        routes=routes,
        tags=[{"name": tag.name, "description": tag.description} for tag in TAGS],
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        separate_input_output_schemas=False,
    )
    _add_components(content["components"])
    content["components"]["schemas"] |= _schemas_of(_ONLY_REFERRED)
    describe_fields(content["components"]["schemas"])
    by_operation = {
        (route.path_format, method.lower()): route
        for route in routes
        if isinstance(route, SingleThreadRoute)
        for method in route.methods or ()
    }
    for path, operations in content["paths"].items():
        for method, operation in operations.items():
            _complete(operation, method, by_operation[path, method])
    _let_responses_gain_fields(content)
    return content


def _let_responses_gain_fields(content: dict[str, Any]) -> None:
    """Allow further fields in schemas that no request has, except in the manifest, whose digest covers all (ADR 43)."""
    schemas = content["components"]["schemas"]
    bodies = [operation.get("requestBody") for methods in content["paths"].values() for operation in methods.values()]
    pending, strict = _schemas_in(bodies), {"Manifest"}
    while pending:
        strict |= pending
        pending = set().union(*(_schemas_in(schemas[name]) for name in pending)) - strict
    for name in set(schemas) - strict:
        if schemas[name].get("additionalProperties") is False:
            del schemas[name]["additionalProperties"]


def _schemas_of(models: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """The schemas of these models and of all that they hold."""
    _, content = models_json_schema([(model, "validation") for model in models], ref_template=_REFERENCE_TO)
    schemas: dict[str, Any] = content["$defs"]
    return schemas


def _schemas_in(value: Any) -> set[str]:
    return set(_REFERENCE.findall(json.dumps(value)))


def _add_components(components: dict[str, Any]) -> None:
    schemas = components["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which no route responds with
        schemas.pop(name, None)
    codes = codes_by_status()
    components["responses"] = {
        name: _problem(f"{description} Codes: {', '.join(f'`{code}`' for code in codes.get(status, ['INTERNAL']))}.")
        for status, (name, description) in PROBLEMS.items()
    }
    description, example = PARAMETERS["idempotency-key"]
    components["parameters"] = {
        "IdempotencyKey": {
            "in": "header",
            "name": idempotency.HEADER,
            "required": False,
            "description": description,
            "schema": {"type": "string", "pattern": "^[!-~]{1,200}$"},
            "example": example,
        }
    }
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", "description": BEARER}}


def _problem(description: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": description, "content": {"application/problem+json": {"schema": schema}}}


def _complete(operation: dict[str, Any], method: str, route: SingleThreadRoute) -> None:
    """Add what the route's dependencies say: scope, errors, idempotency; and words for its parameters."""
    scope = route.scope or ""
    operation["summary"] = operation["operationId"].replace("_", " ").capitalize()
    operation["security"] = [] if scope == "open" else [{"bearer": [scope] if scope else []}]
    responses = operation["responses"]
    if "HTTPValidationError" in json.dumps(responses.get("422", "")):
        del responses["422"]
    for response in responses.values():
        response["description"] = response["description"].replace("Successful Response", "Success")
    for status in sorted(_problem_statuses(operation, method, scope)):
        responses.setdefault(str(status), {"$ref": f"#/components/responses/{PROBLEMS[status][0]}"})
    describe(operation)
    row = route.operation
    if row is not None and row.example is not None:
        operation["requestBody"]["content"]["application/json"]["example"] = row.example
    if row is not None and row.takes_key:
        operation.setdefault("parameters", []).append({"$ref": "#/components/parameters/IdempotencyKey"})


def _problem_statuses(operation: dict[str, Any], method: str, scope: str) -> Iterator[int]:
    """The errors that an operation may respond with, from what it takes."""
    body = "requestBody" in operation
    names = {parameter["name"] for parameter in operation.get("parameters", ())}
    yield from (400, 500, 503)
    if scope != "open":
        yield from (401, 403, 404, 429)
    else:  # a token may be sent, or something in its place
        yield from (401, 429)
        yield from (403, 404, 411) if "key" in names else ()  # a signed link
    if body or names:
        yield 422
    if body:
        yield from (408, 413)
    if method not in ("get", "head"):
        yield 409
    if "if-match" in names:
        yield from (412, 428)
    if operation["operationId"] in _FILE_OPERATIONS or {"selector", "path"} <= names:
        yield 415
