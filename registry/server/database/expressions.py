"""Expressions that SQLAlchemy lacks: a column with one of many values, and recursive statements.

A parameter a value breaks beyond 65,535 values on PostgreSQL, and makes another statement of each number of values. So
`any_of` passes them as one parameter.

The planners know nothing about how many rows a recursion yields, and would scan the joined tables for each of them. So
the order of the joins is fixed: the recursion's row first, then the tables of a step in the order that the step names.
SQLite obeys CROSS JOIN and takes several recursive parts. PostgreSQL takes one: there the steps are one LATERAL, whose
parts each use their index.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlmodel import Session, SQLModel

from registry.server.database import dialects


@dataclass(frozen=True, slots=True)
class RecursiveStep:
    """How a row leads to more rows: the columns of a new row, and the tables to join, in this order."""

    columns: Sequence[sa.ColumnElement[Any]]
    tables: Sequence[type[SQLModel]]
    where: Sequence[sa.ColumnElement[bool]]


class OrderedJoin(sa.Join):
    """A join without a condition, executed from left to right whatever the planner prefers."""

    inherit_cache = True


@compiles(OrderedJoin)
def _compile_ordered_join(join: OrderedJoin, compiler: Any, **options: Any) -> str:
    options |= {"asfrom": True, "from_linter": None}  # the conditions are in WHERE, so the linter sees none
    return " CROSS JOIN ".join(compiler.process(side, **options) for side in (join.left, join.right))


def build_recursive_cte(
    session: Session, seed: sa.Select[Any], steps: Callable[[sa.CTE], Sequence[RecursiveStep]]
) -> sa.CTE:
    """Build the CTE of the rows of `seed` and of every row that a step reaches from them, each once."""
    cte = seed.cte("walk", recursive=True)
    selects = [(step.tables, sa.select(*step.columns).where(*step.where)) for step in steps(cte)]
    if dialects.of(session).recursive_parts:
        return cte.union(*(statement.select_from(join_in_order(cte, *tables)) for tables, statement in selects))
    parts = (statement.select_from(join_in_order(*tables)).correlate(cte) for tables, statement in selects)
    step = sa.union_all(*parts).lateral("step")
    return cte.union(sa.select(*step.c).select_from(cte.join(step, sa.true())))


def join_in_order(*tables: sa.CTE | type[SQLModel]) -> sa.FromClause:
    """Join tables from left to right; the conditions belong into the statement's WHERE."""
    first, *others = (table if isinstance(table, sa.CTE) else sa.inspect(table).local_table for table in tables)
    joined: sa.FromClause = first
    for other in others:
        joined = OrderedJoin(joined, other, sa.true())
    return joined


class _WithoutIndex(FunctionElement[Any]):
    inherit_cache = True
    name = "without_index"


@compiles(_WithoutIndex)
def _compile_column(element: _WithoutIndex, compiler: Any, **options: Any) -> str:
    return str(compiler.process(element.clauses, **options))


@compiles(_WithoutIndex, "sqlite")
def _compile_plus(element: _WithoutIndex, compiler: Any, **options: Any) -> str:
    return f"+{compiler.process(element.clauses, **options)}"


def without_index(column: Any) -> Any:
    """A column of a filter. SQLite, which does not know how many rows have a value, does not begin with its index."""
    element = _WithoutIndex(column)
    element.type = column.type
    return element


class _BytesBetween(FunctionElement[bool]):
    type = sa.Boolean()
    inherit_cache = True
    name = "bytes_between"
    _is_implicitly_boolean = True  # as in `_AnyOf`


@compiles(_BytesBetween, "postgresql")
def _compile_pattern_order(element: _BytesBetween, compiler: Any, **options: Any) -> str:
    column, first, end = (compiler.process(part, **options) for part in element.clauses)
    return f"({column} ~>=~ {first} AND {column} ~<~ {end})"


@compiles(_BytesBetween, "sqlite")
def _compile_binary_order(element: _BytesBetween, compiler: Any, **options: Any) -> str:
    column, first, end = (compiler.process(part, **options) for part in element.clauses)
    return f"({column} >= {first} AND {column} < {end})"


def bytes_between(column: Any, first: str, end: str) -> sa.ColumnElement[bool]:
    """Condition that a text sorts by its bytes, whatever the collation, from `first` to before `end`."""
    return _BytesBetween(column, first, end)


class _ValueList(sa.TypeDecorator[list[Any]]):
    """A list as one parameter: an array on PostgreSQL, JSON on SQLite."""

    impl = sa.JSON
    cache_ok = True

    def __init__(self, is_text: bool) -> None:
        super().__init__()
        self.is_text = is_text

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Return the type of the parameter on this database."""
        array = sa.ARRAY(sa.String() if self.is_text else sa.Integer())
        return dialect.type_descriptor(array if dialect.name == "postgresql" else sa.JSON())


class _AnyOf(FunctionElement[bool]):
    type = sa.Boolean()
    inherit_cache = True
    name = "any_of"
    _is_implicitly_boolean = True  # else SQLite gets `… IN (…) = 1`, for which it uses no index


@compiles(_AnyOf, "postgresql")
def _compile_array(element: _AnyOf, compiler: Any, **options: Any) -> str:
    column, values = element.clauses
    return f"{compiler.process(column, **options)} = ANY ({compiler.process(values, **options)})"


@compiles(_AnyOf, "sqlite")
def _compile_json(element: _AnyOf, compiler: Any, **options: Any) -> str:
    column, values = element.clauses
    each = f"json_each({compiler.process(values, **options)})"
    return f"{compiler.process(column, **options)} IN (SELECT value FROM {each})"  # noqa: S608  # no values


def any_of(column: Any, values: Iterable[Any] = (), *, parameter: str | None = None) -> sa.ColumnElement[bool]:
    """Condition that a column of integers or texts has one of these values, or of those that `parameter` will have."""
    value_type = _ValueList(not isinstance(column.type, sa.Integer))
    name = {"key": None, "value": list(values)} if parameter is None else {"key": parameter, "required": True}
    bound: sa.BindParameter[Any] = sa.bindparam(**name, type_=value_type)
    return _AnyOf(column, bound)
