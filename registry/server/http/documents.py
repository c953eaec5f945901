"""`JsonBody`: the JSON body of every route of the REST API, as the row of its operation says, and read one way only.

- No key may stand twice in an object: of two readers, one takes the first value and one the last.
- The schema reads the bytes, so that megabytes are held as objects only once.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from fastapi import BackgroundTasks, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from registry.api import DEPTH_LIMIT
from registry.api.models import Request as RequestSchema
from registry.errors import Invalid
from registry.findings import Finding
from registry.strict import json as strict_json
from registry.strict.json import Dialect
from registry.validation import errors_of

_JSON = "application/json"
_DIALECT = Dialect(error_code="REQUEST_INVALID", family="request", depth=DEPTH_LIMIT)
Shape = TypeVar("Shape", bound=RequestSchema)


async def _read(request: Request) -> Any:
    """Read the body, whose size was checked. `Invalid` (REQUEST_INVALID)."""
    media_type = request.headers.get("content-type", _JSON).partition(";")[0].strip().lower()
    if media_type != _JSON:
        finding = Finding("request.invalid", "body", f"must be {_JSON}, not {media_type[:100]}")
        raise Invalid("REQUEST_INVALID", finding.to_text(), findings=[finding])
    if not request.state.body:
        raise RequestValidationError([{"type": "missing", "loc": ("body",)}])
    shape: type[RequestSchema] = request.scope["route"].operation.request
    return parse(request.state.body, shape)


def parse(body: bytes, shape: type[Shape]) -> Shape:
    """Return the document in a body of JSON. `Invalid` (REQUEST_INVALID), `RequestValidationError`."""
    strict_json.parse(body, _DIALECT, file="body")
    try:
        return shape.model_validate_json(body)
    except ValidationError as e:
        raise RequestValidationError([{**error, "loc": ("body", *error["loc"])} for error in errors_of(e)]) from None


JsonBody = Annotated[Shape, Depends(_read)]
"""The last parameter that can refuse a request: who sends it and whether they may is known before."""


def body_of(shape: type[RequestSchema]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads such a body."""
    schema = {"$ref": f"#/components/schemas/{shape.__name__}"}
    return {"requestBody": {"required": True, "content": {_JSON: {"schema": schema}}}}


def respond(
    document: BaseModel, headers: Mapping[str, str] | None = None, background: BackgroundTasks | None = None
) -> Response:
    """The response with this document."""
    return Response(document.model_dump_json(), headers=dict(headers or {}), media_type=_JSON, background=background)
