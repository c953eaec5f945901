"""Bodies of transfers: read and written by the structs that clients have, without FastAPI's own parsing."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import BackgroundTasks, Depends, Request, Response

from registry.api import RequestStruct, check_storable
from registry.errors import Invalid
from registry.findings import Finding
from registry.structs import SCHEMA_MARK, FrozenStruct, first_problem

_JSON = "application/json"


def read_as(shape: type[RequestStruct]) -> Any:
    """The dependency that reads the body of a request, whose size was checked. `Invalid` (REQUEST_INVALID)."""

    async def read(request: Request) -> RequestStruct:
        try:
            return _read(request, shape)
        except (ValueError, RecursionError) as e:
            location, message = first_problem(e, "")
            finding = Finding("request.invalid", f"body.{location}".rstrip(".")[:300], message[:500])
            text = f"{finding.location}: {finding.message}"
            raise Invalid("REQUEST_INVALID", text, findings=[finding]) from e

    return Depends(read)


def _read(request: Request, shape: type[RequestStruct]) -> RequestStruct:
    media_type = request.headers.get("content-type", _JSON).partition(";")[0].strip().lower()
    if media_type != _JSON:
        raise ValueError(f"must be {_JSON}, not {media_type[:100]}")
    body: bytes = request.state.body
    if b"\\u0000" in body:  # PostgreSQL stores no such text
        check_storable(json.loads(body))
    return shape.model_validate_json(body)


def body_of(shape: type[RequestStruct]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads such a body."""
    schema = {SCHEMA_MARK: shape.__name__}
    return {"requestBody": {"required": True, "content": {_JSON: {"schema": schema}}}}


def respond(
    document: FrozenStruct, headers: Mapping[str, str] | None = None, background: BackgroundTasks | None = None
) -> Response:
    """The response with this document."""
    return Response(document.to_json(), headers=dict(headers or {}), media_type=_JSON, background=background)
