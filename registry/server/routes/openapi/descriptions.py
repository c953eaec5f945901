"""Descriptions and examples of parameters (parameters.toml), and the texts below fields of schemas."""

import ast
import inspect
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel

from registry.api.models import Problem
from registry.api.operations.table import OPERATIONS

_FILES = resources.files(__package__)
PARAMETERS: dict[str, tuple[str, Any]] = tomllib.loads(_FILES.joinpath("parameters.toml").read_text("utf-8"))


def describe(operation: dict[str, Any]) -> None:
    """Add description and example to every parameter of the operation that has none. `KeyError` for an unknown one."""
    for parameter in operation.get("parameters", ()):
        if "$ref" in parameter or "description" in parameter:
            continue
        name = parameter["name"]
        own = f"{operation['operationId']}.{name}"
        description, example = PARAMETERS[own] if own in PARAMETERS else PARAMETERS[name]
        parameter.setdefault("description", description)
        if example != "":
            parameter.setdefault("example", example)


def describe_fields(schemas: dict[str, Any]) -> None:
    """Add its description to every field of these schemas: the text below the field in its class."""
    types = {kind.__name__: kind for kind in _types_with_fields()}
    for schema, content in schemas.items():
        for field, declared in content.get("properties", {}).items():
            if text := _description(types[schema], field):
                declared["description"] = text


def _types_with_fields() -> Iterator[type]:
    """Every type with fields that a request or a response of an operation holds."""
    pending: list[Any] = [Problem, *(shape for row in OPERATIONS.values() for shape in (row.request, row.response))]
    visited: list[Any] = []
    while pending:
        kind = pending.pop()
        if kind in visited:
            continue
        visited.append(kind)
        pending += get_args(kind)
        if not isinstance(kind, type):
            continue
        if issubclass(kind, BaseModel):
            pending += [field.annotation for field in kind.model_fields.values()]
            yield kind
        elif is_dataclass(kind):
            pending += get_type_hints(kind).values()
            yield kind


def _description(kind: type, field: str) -> str:
    """The text below a field, in the class of this type that declares it."""
    if issubclass(kind, BaseModel):
        field = next((name for name, declared in kind.model_fields.items() if declared.alias == field), field)
    for parent in kind.__mro__:
        texts = _texts_below_fields(parent.__module__).get(parent.__name__.partition("[")[0], {})
        if field in texts:
            return texts[field]
    return ""


@cache
def _texts_below_fields(module: str) -> dict[str, dict[str, str]]:
    """Class → field → the text below it. Only the document needs these texts, so pydantic does not read them."""
    texts: dict[str, dict[str, str]] = {}
    for node in ast.walk(ast.parse(inspect.getsource(sys.modules[module]))) if module != "builtins" else ():
        if isinstance(node, ast.ClassDef):
            texts[node.name] = dict(_below(node.body))
    return texts


def _below(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for statement, following in pairwise(body):
        text = getattr(getattr(following, "value", None), "value", None)  # of a bare constant
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr) and isinstance(text, str):
            yield ast.unparse(statement.target), " ".join(text.split())
