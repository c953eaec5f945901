"""Bases of REST schemas, and the schemas that all resources share: lists, pages, problems, outcomes.

Requests reject unknown fields; responses may gain fields.
"""

from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ModelWrapValidatorHandler, model_validator

from registry.api import check_printable, check_storable, escape_control
from registry.findings import Finding
from registry.model import StrictModel

Item = TypeVar("Item")
PrintableText = Annotated[str, AfterValidator(check_printable)]
"""Text that a person typed and others read in terminals and logs. Control characters are refused."""
EscapedText = Annotated[str, AfterValidator(escape_control)]
"""Text that a program reports, such as an error of an engine. Control characters are escaped."""


class Request(StrictModel):
    """The base of all requests."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Reject values that cannot be stored."""
        check_storable(data)
        return handler(data)


class Response(BaseModel):
    """The base of all responses."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class ItemList(Response, Generic[Item]):
    """A complete list."""

    items: list[Item]


class ItemPage(ItemList[Item]):
    """One page of items."""

    next_cursor: str = ""
    """Send it as `cursor` to continue. Empty on the last page."""


class Problem(Response):
    """An error. `code` is for programs and never changes its meaning, `detail` and `next_step` are for people."""

    type: str = "about:blank"
    """Always `about:blank` (RFC 9457): the kind of error is in `code`."""
    title: str
    """The status in words."""
    status: int
    """HTTP status."""
    code: str
    """Stable code for programs, such as `ALIAS_MOVED`. Its meaning never changes."""
    detail: str
    """What happened, with the names and the limit, for people."""
    findings: list[Finding] = []
    """Every broken rule, if there are several."""
    request_id: str
    """The request that caused it, as in the header `X-Request-Id` and in the server's log."""
    next_step: str = ""
    """What to do first, in one sentence. Empty if there is nothing to do."""
    parameters: dict[str, str] = {}
    """What the error is about, by name: `adapter`, `alias` or `base`."""
    candidates: list[str] = []
    """What may have been meant, the nearest first."""
    retry_after_seconds: int | None = None
    """How long to wait before a retry, as the header `Retry-After` says; null if a retry does not help."""


class ItemOutcome(Response, Generic[Item]):
    """The outcome of one item: its result, or the problem that it alone has."""

    problem: Problem | None = None
    """Why this item failed; null if it succeeded."""
    result: Item | None = None
    """What was done; null if it failed."""
