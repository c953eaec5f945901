"""The one table from an error's class or code to its HTTP status."""

from __future__ import annotations

from registry import errors
from registry.errors import RegistryError

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
    errors.RegistryError: 500,
}
STATUS_OF_CODE = {
    "REQUEST_INVALID": 400,
    "DIGEST_INVALID": 400,
    "FILE_REFUSED": 415,
    "PRECONDITION_REQUIRED": 428,
    "ALIAS_MOVED": 412,
    "BODY_STALLED": 408,
    "UPLOAD_INCOMPLETE": 422,
    "RATE_LIMITED": 429,
    "HUB_PUSH_UNSUPPORTED": 501,
    "HUB_RELAY_REFUSED": 501,
}
"""Codes whose status is not their class's."""


def status_of(error: RegistryError) -> int:
    own = next(cls for cls in type(error).__mro__ if cls in STATUS_OF_CLASS)
    return STATUS_OF_CODE.get(error.code) or STATUS_OF_CLASS[own]


def codes_by_status() -> dict[int, list[str]]:
    """Status → the codes of errors that are answered with it, sorted."""
    codes: dict[int, list[str]] = {}
    for cls, status in STATUS_OF_CLASS.items():
        for code in cls.CODES:
            codes.setdefault(STATUS_OF_CODE.get(code, status), []).append(code)
    return {status: sorted(codes[status]) for status in sorted(codes)}
