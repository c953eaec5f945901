"""Schemas of REST requests and responses that are not domain models. The server and its clients use the same ones.

Times are UTC with a time zone, sizes are bytes. Requests reject unknown fields; responses may gain fields (ADR 43).
"""

import re
from collections.abc import Callable
from typing import Any

from registry.errors import Invalid
from registry.findings import Finding
from registry.strict import json as strict_json

PREFIX = "/api/v1"
LINKS = f"{PREFIX}/links/"
"""Path of the signed links that a server handles itself."""
PAGE_LIMIT = 200
PAGE_DEFAULT = 50
MESSAGE_LIMIT = 2000
GROUP_LIMIT = 500
"""Items of one request that moves aliases, approves or describes."""
REF_LIMIT = 300
"""Characters of a name or a ref in a request. Longer ones are refused before they are parsed."""
DEPTH_LIMIT = 64
"""How deep lists and objects of a request may be nested."""
CHECKPOINT_HEADER = "Audit-Checkpoint"
"""On responses about a version: the latest checkpoint of the audit log, its note in base64."""
_NOT_STORABLE = re.compile(r"[\0\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")


def check_printable(text: str) -> str:
    """Return the text. `ValueError` for control characters."""
    control = _CONTROL.search(text)
    if control is not None:
        raise ValueError(f"holds the control character U+{ord(control[0][0]):04X}")
    return text


def check_message(text: str) -> None:
    """Raise `ValueError` for a text that no message of a push may be: a long one, or one with control characters."""
    if len(text) > MESSAGE_LIMIT:
        raise ValueError(f"has {len(text)} characters, over the limit of {MESSAGE_LIMIT}")
    check_printable(text)


def check_field(field: str, check: Callable[[str], object], text: str) -> None:
    """Run a check of a request's text. `Invalid` (REQUEST_INVALID) names the field."""
    try:
        check(text)
    except ValueError as e:
        finding = Finding("request.invalid", field, str(e))
        raise Invalid("REQUEST_INVALID", finding.to_text(), findings=[finding]) from e


def escape_control(text: str) -> str:
    """The text with escapes for control characters."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def check_storable(data: Any) -> None:
    """Reject U+0000 (PostgreSQL), lone surrogates (UTF-8), and values that are nested too deep."""
    where = strict_json.find_text(data, _NOT_STORABLE, depth=DEPTH_LIMIT)
    if where is not None:
        raise ValueError(f"{where}: holds the character U+0000 or half of a surrogate pair".removeprefix(": "))
