"""Schemas of REST requests and answers that are not domain models. The server and its clients use the same ones.

Times are UTC with a time zone, sizes are bytes. Requests reject unknown fields; answers may gain fields.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from registry.findings import Finding

Item = TypeVar("Item")
PREFIX = "/api/v1"
LINKS = f"{PREFIX}/links/"
"""Path of the signed links that a server answers itself."""
PAGE_LIMIT = 200
PAGE_DEFAULT = 50
MESSAGE_LIMIT = 2000
ERRORS_LIMIT = 100
"""How many errors of one request are listed. Each needs a kilobyte of memory."""
DEPTH_LIMIT = 64
"""How deep lists and objects of a request may be nested."""
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")


def _check_printable(text: str) -> str:
    control = _CONTROL.search(text)
    if control is not None:
        raise ValueError(f"holds the control character U+{ord(control[0][0]):04X}")
    return text


def check_message(text: str) -> None:
    """Raise `ValueError` for a text that no message of a push may be: a long one, or one with control characters."""
    if len(text) > MESSAGE_LIMIT:
        raise ValueError(f"has {len(text)} characters, over the limit of {MESSAGE_LIMIT}")
    _check_printable(text)


def _escape_control(text: str) -> str:
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


PrintableText = Annotated[str, AfterValidator(_check_printable)]
"""Text that a person typed and others read in terminals and logs. Control characters are refused."""
EscapedText = Annotated[str, AfterValidator(_escape_control)]
"""Text that a program reports, such as an error of an engine. Control characters are escaped."""


class Request(BaseModel):
    """The base of all requests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Reject values that cannot be stored, and do not list more errors than anyone reads."""
        _check_storable(data)
        try:
            return handler(data)
        except ValidationError as e:
            if e.error_count() <= ERRORS_LIMIT:
                raise
            raise ValueError(f"{e.error_count()} errors, which are too many to list") from None


def _check_storable(data: Any) -> None:
    """Reject U+0000 (PostgreSQL), lone surrogates (UTF-8), and values that are nested too deep."""
    pending = [(data, 0)]
    while pending:
        value, depth = pending.pop()
        text = value if isinstance(value, str) else ""
        if "\0" in text or (depth > 1 and not text.isascii() and _SURROGATE.search(text)):
            raise ValueError("a text holds the character U+0000 or a lone surrogate")
        if depth > DEPTH_LIMIT:
            raise ValueError(f"values are nested more than {DEPTH_LIMIT} deep")
        if isinstance(value, dict):
            pending += [(inner, depth + 1) for inner in (*value.keys(), *value.values())]
        elif isinstance(value, list):
            pending += [(inner, depth + 1) for inner in value]


class Answer(BaseModel):
    """The base of all answers."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class Problem(Answer):
    """An error. `code` is for programs and never changes its meaning, `detail` and `next_step` are for people."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    findings: list[Finding] = []
    request_id: str
    next_step: str = ""
    retry_after_seconds: int | None = None


class ItemList(Answer, Generic[Item]):
    """A complete list."""

    items: list[Item]


class ItemPage(ItemList[Item]):
    """One page of items."""

    next_cursor: str = ""


# ------------------------------------------------------------------ following the audit log, in every push and pull
CHECKPOINT_HEADER = "Audit-Checkpoint"
"""On answers about a version: the latest checkpoint of the audit log, its note in base64."""


class KeyReplacement(Answer):
    """A key that an operator made because the former one was lost. Only the log itself attests it."""

    key: str
    reason: str
    at: datetime
    seq: int


class LogKeys(Answer):
    """The name of the log and its public keys (C2SP verifier keys); the first one signs."""

    origin: str
    keys: list[str]
    successions: list[str] = []
    replacements: list[KeyReplacement] = []


class Consistency(Answer):
    """The proof that the log of size `old` is a prefix of the log of size `new`: hashes in hex."""

    old: int
    new: int
    hashes: list[str]
