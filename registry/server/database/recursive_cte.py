"""Walks: one recursive statement that goes from row to row, on SQLite and on PostgreSQL, always by indexes.

    walk = seed, then what each step makes of each row, until nothing new comes (WITH RECURSIVE … UNION)

Invariants
- A row comes first, and the tables of a step are looked in one after the other, in the order that the step names:
  a planner that knows little of a walk would begin with the tables and read all of them for each row.
- SQLite is told so by CROSS JOIN, and takes several steps. PostgreSQL takes one: there they are one LATERAL, whose
  parts each find their index.

Example
    >>> walk = walks.recursive(session, "walk", seed, lambda walk: [Step(columns, (EdgeRow, VersionRow), where)])
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
class Step:
    """How a row of a walk leads to more: the columns of the new row, and the tables to look in, one after the other."""

    columns: Sequence[ColumnElement[Any]]
    tables: Sequence[type[SQLModel]]
    where: Sequence[ColumnElement[bool]]


class InOrder(Join):
    """A join without a condition that is made from left to right, whatever a planner would think."""

    inherit_cache = True


@compiles(InOrder)
def _in_order(join: InOrder, compiler: Any, **how: Any) -> str:
    how |= {"asfrom": True, "from_linter": None}  # its conditions stand in WHERE, as they shall
    return " CROSS JOIN ".join(compiler.process(side, **how) for side in (join.left, join.right))


def recursive(session: Session, name: str, seed: Select[Any], steps: Callable[[CTE], Sequence[Step]]) -> CTE:
    """The rows of `seed`, and what each of `steps` makes of a row, each once."""
    walk = seed.cte(name, recursive=True)
    asked = [(step.tables, select(*step.columns).where(*step.where)) for step in steps(walk)]
    if db.is_sqlite(session):
        return walk.union(*(one.select_from(in_order(walk, *tables)) for tables, one in asked))
    step = union_all(*(one.select_from(in_order(*tables)).correlate(walk) for tables, one in asked)).lateral("step")
    return walk.union(select(*step.c).select_from(walk.join(step, true())))


def in_order(*tables: CTE | type[SQLModel]) -> FromClause:
    """Tables to look in one after the other, by the conditions of the statement."""
    first, *others = (table if isinstance(table, CTE) else inspect(table).local_table for table in tables)
    place: FromClause = first
    for other in others:
        place = InOrder(place, other, true())
    return place
