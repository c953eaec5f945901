"""The access matrix equals the committed one, and invisible objects look like absent ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.access.matrix import Matrix, table, without_ids
from tests.harness import Harness

pytestmark = pytest.mark.security

COMMITTED = Path(__file__).with_name("matrix.txt")


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


def test_every_route_responds_every_kind_of_actor_as_the_committed_table_says(harness: Harness) -> None:
    responses = list(Matrix(harness).responses())
    matrix, committed = table(iter(responses)), COMMITTED.read_text()
    assert matrix == committed, "if this is on purpose: python -m tests.access.matrix > tests/access/matrix.txt"
    # 501: a push in the Hub's dialect, which is refused with a sentence
    assert {a.status_code for *_, a in responses if a.status_code >= 500} <= {501}
    by_place: dict[tuple[str, str], dict[str, object]] = {}
    for route, actor, location, response in responses:
        if location and actor != "admin" and response.request.method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            by_place.setdefault((route, actor), {})[location] = _without_own_words(without_ids(response, location))
    different = {key for key, by_location in by_place.items() if by_location["globex"] != by_location["nowhere"]}
    assert different == set()


def _without_own_words(response: tuple[int, bytes]) -> tuple[int, bytes]:
    """The asker's own words are in the response: they say nothing of what is there."""
    return response[0], re.sub(rb"(tok|job|psh|pub)_[a-z0-9]+|going-[a-z]+", b"NAME", response[1])
