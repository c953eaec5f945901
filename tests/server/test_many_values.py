"""Statements about very many rows: ids are one parameter, and a statement that is too large is no outage."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import OperationalError
from sqlmodel import col, select

from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import BaseRow, BlobRow
from tests.harness import Harness

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


def test_a_statement_that_no_database_could_execute_is_not_called_an_outage(
    harness: Harness, database_kind: str
) -> None:
    limit = MANY if database_kind == "postgres" else 300_000
    with pytest.raises(OperationalError), db.session(harness.engine, write=False) as session:
        session.exec(select(BaseRow.id).where(col(BaseRow.id).in_(range(limit))))
