"""Options of a command from the fields of a request."""

from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo


def options_of(shape: type[BaseModel]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options of a command, one for each field of a request, with its description and its type."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(shape.model_fields.items()):
            option = click.option(f"--{name.replace('_', '-')}", help=field.description, **_of_type(field))
            function = option(function)
        return function

    return declare


def _of_type(field: FieldInfo) -> dict[str, Any]:
    """How click reads the values of a field: a text, texts, a number, or one of some words."""
    if field.annotation is str:
        return {"default": ""}
    if get_origin(field.annotation) is list:
        return {"multiple": True}
    kind = get_args(field.annotation)[0]
    if get_origin(kind) is Annotated:
        return {"type": click.IntRange(0)}
    return {"type": click.Choice([str(word) for word in get_args(kind) or kind])}
