"""Garbage collection at any point of pushes, deletions and reads; `make interleavings` runs 100,000 a database."""

from __future__ import annotations

import os
from typing import Any

import pytest
from sqlalchemy import false, true

from registry.server.storage import needs, reclaim, references
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


def _claim_without_looking_again(monkeypatch: pytest.MonkeyPatch) -> None:
    update_unneeded = reclaim.update_unneeded

    def update(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(needs, "is_unneeded", lambda **_: true())
            return update_unneeded(*arguments)

    monkeypatch.setattr(reclaim, "update_unneeded", update)


def _reserve_what_is_being_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "check_not_deleting", lambda *_: None)


def _ignore_open_pushes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "is_held", lambda **_: false())


@pytest.mark.parametrize(
    ("break_collection", "first"),
    [(_claim_without_looking_again, 200), (_reserve_what_is_being_deleted, 0), (_ignore_open_pushes, 0)],
)
def test_a_broken_collection_is_found(
    break_collection: Any, first: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`first`: a seed shortly before the first one that shows it. The rarest shows in one of some 200."""
    break_collection(monkeypatch)
    with pytest.raises(AssertionError, match="seed"):
        garbage.explore(f"sqlite:///{tmp_path}/registry.db", 100, first)
