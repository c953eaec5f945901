"""Bases of those REST schemas that pydantic validates: all but the ones of a transfer (`registry.structs`).

Requests reject unknown fields; responses may gain fields.
"""

from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from registry.api import check_printable, check_storable, escape_control

Item = TypeVar("Item")
ERRORS_LIMIT = 100
"""How many errors of one request are listed. Each needs a kilobyte of memory."""

PrintableText = Annotated[str, AfterValidator(check_printable)]
"""Text that a person typed and others read in terminals and logs. Control characters are refused."""
EscapedText = Annotated[str, AfterValidator(escape_control)]
"""Text that a program reports, such as an error of an engine. Control characters are escaped."""


class Request(BaseModel):
    """The base of all requests."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Reject values that cannot be stored, and do not list more errors than anyone reads."""
        check_storable(data)
        try:
            return handler(data)
        except ValidationError as e:
            if e.error_count() <= ERRORS_LIMIT:
                raise
            raise ValueError(f"{e.error_count()} errors, which are too many to list") from None


class Response(BaseModel):
    """The base of all responses."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class ItemList(Response, Generic[Item]):
    """A complete list."""

    items: list[Item]


class ItemPage(ItemList[Item]):
    """One page of items."""

    next_cursor: str = ""
