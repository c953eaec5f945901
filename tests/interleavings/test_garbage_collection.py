"""Garbage collection at any point of pushes, deletions and reads; `make interleavings` runs 100,000 a database."""

from __future__ import annotations

import os
from typing import Any

import pytest
from sqlalchemy import false

from registry.server.storage import needs, references
from tests.interleavings import garbage

COUNT = int(os.environ.get("INTERLEAVINGS", "100"))
FIRST_SEED = int(os.environ.get("INTERLEAVINGS_FIRST", "0"))


@pytest.fixture(params=["sqlite", "postgres"])
def database_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_in_any_interleaving(
    database_url: str, database_kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    different, steps = garbage.explore(database_url, COUNT, FIRST_SEED)
    with capsys.disabled():
        print(f"\n{database_kind}: {COUNT} interleavings from seed {FIRST_SEED}, {different} different, {steps} steps")
    assert different > COUNT * 0.5


def _reserve_what_is_being_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "check_not_deleting", lambda *_: None)


def _ignore_open_pushes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "is_held", lambda **_: false())


@pytest.mark.parametrize("break_collection", [_reserve_what_is_being_deleted, _ignore_open_pushes])
def test_a_broken_collection_is_found(break_collection: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    break_collection(monkeypatch)
    with pytest.raises(AssertionError, match="seed"):
        garbage.explore(f"sqlite:///{tmp_path}/registry.db", 100, 0)
