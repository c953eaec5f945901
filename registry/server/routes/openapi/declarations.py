"""What FastAPI cannot read from a signature: raw bodies, and statuses that a route chooses at run time."""

from typing import Any

OCTETS = "application/octet-stream"
BINARY = {"type": "string", "format": "binary"}
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "Not modified"}}
RAW_BODY = {"requestBody": {"required": True, "content": {OCTETS: {"schema": BINARY}}}}


def raw(description: str, media_type: str = OCTETS) -> dict[str, Any]:
    """A response whose body is not JSON: bytes, or text of this type."""
    schema = BINARY if media_type == OCTETS else {"type": "string"}
    return {"description": description, "content": {media_type: {"schema": schema}}}


def existing(model: type) -> dict[int | str, dict[str, Any]]:
    """The 200 of a route that usually creates (201)."""
    return {200: {"model": model, "description": "It exists already"}}


FILE: dict[int | str, dict[str, Any]] = {
    200: raw("The whole file"),
    206: raw("The range"),
    **NOT_MODIFIED,
    307: {"description": "The bytes are at `Location`. Send no token there."},
    416: {"description": "The range is outside of the file"},
}
FILE_HEADERS = {
    "parameters": [
        {"in": "header", "name": name, "required": False, "schema": {"type": "string", "maxLength": 1000}}
        for name in ("range", "if-none-match")
    ]
}
