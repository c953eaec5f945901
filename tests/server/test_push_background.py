"""What a push leaves for after its response: done at once after a push alone, together while many push, never lost."""

from __future__ import annotations

import threading
import time

import pytest
from sqlmodel import col, select

from registry.server.database import db
from registry.server.database.models import VersionRow
from registry.server.push import background
from tests.harness import Harness

LONG_SECONDS = 600.0


def unrecorded(harness: Harness) -> int:
    with db.session(harness.engine, write=False) as session:  # while work goes on: a session of the harness waits
        return len(session.exec(select(VersionRow.id).where(col(VersionRow.recorded_at).is_(None))).all())


@pytest.fixture
def long_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's patience ends during a test."""
    for name in ("QUIET_SECONDS", "REFS_DELAY_SECONDS", "MEASURE_DELAY_SECONDS"):
        monkeypatch.setattr(background, name, LONG_SECONDS)


@pytest.mark.usefixtures("long_timeouts")
def test_a_push_alone_is_recorded_at_once(filled_harness: Harness) -> None:
    filled_harness.push("acme/support")
    filled_harness.transport.settle()
    assert unrecorded(filled_harness) == 0


@pytest.mark.usefixtures("long_timeouts")
def test_records_wait_for_pushes_in_progress_and_are_written_together(filled_harness: Harness) -> None:
    background.expect_commits(filled_harness.engine, ["psh_of_somebody_else"])
    filled_harness.push("acme/one")
    filled_harness.push("acme/two")
    assert unrecorded(filled_harness) == 2
    with background.push_in_progress(filled_harness.engine, ["psh_of_somebody_else"]):
        assert unrecorded(filled_harness) == 2  # its commit may bring one more
    filled_harness.transport.settle()
    assert unrecorded(filled_harness) == 0


def test_measuring_waits_for_a_push_that_uploads_straight_to_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "QUIET_SECONDS", 0.01)
    scheduler = background._Scheduler()
    scheduler.expect_commits(["psh_on_its_way"])
    until = time.monotonic() + LONG_SECONDS
    waiting = threading.Thread(
        target=lambda: scheduler._wait(until, or_when=lambda: False, planned_count=True), daemon=True
    )
    waiting.start()
    waiting.join(20 * background.QUIET_SECONDS)
    assert waiting.is_alive()
    with scheduler.push_in_progress(["psh_on_its_way"]):
        pass
    waiting.join(LONG_SECONDS)
    assert not waiting.is_alive()
