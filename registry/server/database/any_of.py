"""`any_of`: compares a column with any number of values, which are one parameter.

A parameter a value breaks beyond 65,535 values on PostgreSQL, and makes another statement of each number of values.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import JSON, BindParameter, Boolean, ColumnElement, Integer, String, TypeDecorator, bindparam
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class _ValueList(TypeDecorator[list[Any]]):
    """A list as one parameter: an array on PostgreSQL, JSON on SQLite."""

    impl = JSON
    cache_ok = True

    def __init__(self, is_text: bool) -> None:
        super().__init__()
        self.is_text = is_text

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Return the type of the parameter on this database."""
        array = postgresql.ARRAY(String() if self.is_text else Integer())
        return dialect.type_descriptor(array if dialect.name == "postgresql" else JSON())


class _AnyOf(FunctionElement[bool]):
    type = Boolean()
    inherit_cache = True
    name = "any_of"
    _is_implicitly_boolean = True  # else SQLite gets `… IN (…) = 1`, for which it uses no index


@compiles(_AnyOf)
def _compile_array(element: _AnyOf, compiler: Any, **options: Any) -> str:
    column, values = element.clauses
    return f"{compiler.process(column, **options)} = ANY ({compiler.process(values, **options)})"


@compiles(_AnyOf, "sqlite")
def _compile_json(element: _AnyOf, compiler: Any, **options: Any) -> str:
    column, values = element.clauses
    each = f"json_each({compiler.process(values, **options)})"
    return f"{compiler.process(column, **options)} IN (SELECT value FROM {each})"  # noqa: S608  # no values


def any_of(column: Any, values: Iterable[Any] = (), *, parameter: str | None = None) -> ColumnElement[bool]:
    """Condition that a column of integers or texts has one of these values, or of those that `parameter` will have."""
    value_type = _ValueList(not isinstance(column.type, Integer))
    name = {"key": None, "value": list(values)} if parameter is None else {"key": parameter, "required": True}
    bound: BindParameter[Any] = bindparam(**name, type_=value_type)
    return _AnyOf(column, bound)
