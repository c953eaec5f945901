"""Bodies of transfers: parsed as JSON by the schema itself, so that megabytes are held as objects only once."""

from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import BackgroundTasks, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from registry.api.models import Request as RequestSchema
from registry.errors import Invalid
from registry.findings import Finding
from registry.validation import errors_of

_JSON = "application/json"
Shape = TypeVar("Shape", bound=RequestSchema)


def read_as(shape: type[Shape]) -> Any:
    """The dependency that reads the body of a request, whose size was checked. `Invalid` (REQUEST_INVALID)."""

    async def read(request: Request) -> Shape:
        media_type = request.headers.get("content-type", _JSON).partition(";")[0].strip().lower()
        if media_type != _JSON:
            finding = Finding("request.invalid", "body", f"must be {_JSON}, not {media_type[:100]}")
            raise Invalid("REQUEST_INVALID", finding.to_text(), findings=[finding])
        try:
            return shape.model_validate_json(request.state.body)
        except ValidationError as e:
            raise RequestValidationError(
                [{**error, "loc": ("body", *error["loc"])} for error in errors_of(e)]
            ) from None

    return Depends(read)


def body_of(shape: type[RequestSchema]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads such a body."""
    schema = {"$ref": f"#/components/schemas/{shape.__name__}"}
    return {"requestBody": {"required": True, "content": {_JSON: {"schema": schema}}}}


def respond(
    document: BaseModel, headers: Mapping[str, str] | None = None, background: BackgroundTasks | None = None
) -> Response:
    """The response with this document."""
    return Response(document.model_dump_json(), headers=dict(headers or {}), media_type=_JSON, background=background)
