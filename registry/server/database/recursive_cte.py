"""Builds recursive statements (WITH RECURSIVE … UNION) that both databases run by indexes.

The planners know nothing about how many rows a recursion yields, and would scan the joined tables for each of them. So
the order of the joins is fixed: the recursion's row first, then the tables of a step in the order that the step names.
SQLite obeys CROSS JOIN and takes several recursive parts. PostgreSQL takes one: there the steps are one LATERAL, whose
parts each use their index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import CTE, ColumnElement, FromClause, Join, Select, inspect, select, true, union_all
from sqlalchemy.ext.compiler import compiles
from sqlmodel import Session, SQLModel

from registry.server.database import db


@dataclass(frozen=True, slots=True)
class RecursiveStep:
    """How a row leads to more rows: the columns of a new row, and the tables to join, in this order."""

    columns: Sequence[ColumnElement[Any]]
    tables: Sequence[type[SQLModel]]
    where: Sequence[ColumnElement[bool]]


class OrderedJoin(Join):
    """A join without a condition, executed from left to right whatever the planner prefers."""

    inherit_cache = True


@compiles(OrderedJoin)
def _compile_ordered_join(join: OrderedJoin, compiler: Any, **options: Any) -> str:
    options |= {"asfrom": True, "from_linter": None}  # the conditions are in WHERE, so the linter sees none
    return " CROSS JOIN ".join(compiler.process(side, **options) for side in (join.left, join.right))


def build_recursive_cte(session: Session, seed: Select[Any], steps: Callable[[CTE], Sequence[RecursiveStep]]) -> CTE:
    """Build the CTE of the rows of `seed` and of every row that a step reaches from them, each once."""
    cte = seed.cte("walk", recursive=True)
    selects = [(step.tables, select(*step.columns).where(*step.where)) for step in steps(cte)]
    if db.is_sqlite(session):
        return cte.union(*(statement.select_from(join_in_order(cte, *tables)) for tables, statement in selects))
    parts = (statement.select_from(join_in_order(*tables)).correlate(cte) for tables, statement in selects)
    step = union_all(*parts).lateral("step")
    return cte.union(select(*step.c).select_from(cte.join(step, true())))


def join_in_order(*tables: CTE | type[SQLModel]) -> FromClause:
    """Join tables from left to right; the conditions belong into the statement's WHERE."""
    first, *others = (table if isinstance(table, CTE) else inspect(table).local_table for table in tables)
    joined: FromClause = first
    for other in others:
        joined = OrderedJoin(joined, other, true())
    return joined
