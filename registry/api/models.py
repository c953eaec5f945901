"""Bases of REST schemas, and the schemas that all resources share: lists, pages, problems, outcomes.

Requests reject unknown fields; responses may gain fields.
"""

from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ModelWrapValidatorHandler, model_validator

from registry.api import check_printable, check_storable, escape_control
from registry.findings import Finding
from registry.model import FewErrorsModel

Item = TypeVar("Item")
PrintableText = Annotated[str, AfterValidator(check_printable)]
"""Text that a person typed and others read in terminals and logs. Control characters are refused."""
EscapedText = Annotated[str, AfterValidator(escape_control)]
"""Text that a program reports, such as an error of an engine. Control characters are escaped."""


class Request(FewErrorsModel):
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


class Problem(Response):
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


class ItemOutcome(Response, Generic[Item]):
    """The outcome of one item: its result, or the problem that it alone has."""

    problem: Problem | None = None
    result: Item | None = None
