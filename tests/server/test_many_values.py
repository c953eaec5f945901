"""Statements about very many rows: ids are one parameter, and a statement that is too large is no outage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlmodel import col, select

from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import BaseRow, BlobRow
from tests.harness import Harness
from tests.server.test_desired_state import desired, fill, http

pytestmark = pytest.mark.security

MANY = 70_000
"""More than a statement on PostgreSQL may have parameters."""


def test_a_condition_takes_very_many_numbers_or_texts(harness: Harness) -> None:
    harness.add_base()
    with harness.session() as session:
        ids = session.exec(select(BaseRow.id).where(any_of(col(BaseRow.id), range(MANY)))).all()
        texts = [f"sha256:{number:064}" for number in range(MANY)]
        assert len(ids) == 1
        assert session.exec(select(BlobRow.digest).where(any_of(col(BlobRow.digest), texts))).all() == []
        assert session.exec(select(BaseRow.id).where(any_of(col(BaseRow.id), []))).all() == []


def test_the_desired_state_has_as_many_parameters_for_any_number_of_adapters(harness: Harness) -> None:
    counts: dict[str, int] = {}

    def count(_c: Any, _cursor: Any, statement: str, parameters: Sequence[Any], *_: Any) -> None:
        counts[statement] = len(parameters)

    fill(harness, "acme/a0")
    client = http(harness)
    desired(client)
    event.listen(harness.engine, "before_cursor_execute", count)
    assert len(desired(client, engine="vllm==0.33.0").adapters) == 1
    few = counts.copy()
    event.remove(harness.engine, "before_cursor_execute", count)
    for number in range(1, 4):
        harness.push(f"acme/a{number}")
        harness.admin.promote(f"acme/a{number}", "canary", "1", generation=0)
    desired(client)
    counts.clear()
    event.listen(harness.engine, "before_cursor_execute", count)
    assert len(desired(client, engine="vllm==0.33.0").adapters) == 4
    event.remove(harness.engine, "before_cursor_execute", count)
    shared = counts.keys() & few.keys()  # other threads may still do what follows a push
    assert len(shared) >= 6
    assert {statement: counts[statement] for statement in shared} == {statement: few[statement] for statement in shared}


def test_a_statement_that_no_database_could_execute_is_not_called_an_outage(
    harness: Harness, database_kind: str
) -> None:
    limit = MANY if database_kind == "postgres" else 300_000
    with pytest.raises(OperationalError), db.session(harness.engine, write=False) as session:
        session.exec(select(BaseRow.id).where(col(BaseRow.id).in_(range(limit))))
