"""What a push leaves for after its response: done at once after a push alone, together while many push, never lost."""

from __future__ import annotations

import threading
import time

import pytest
from sqlmodel import Session, col, select

from registry.api.transfer import PushRequest
from registry.digest import Digest
from registry.server.database.models import VersionRow
from registry.server.push import background, commit
from tests.bulk import commit_push, plan_push
from tests.harness import Harness, upload

LONG_SECONDS = 600.0


def unrecorded(harness: Harness) -> int:
    with harness.session() as session:
        return len(session.exec(select(VersionRow.id).where(col(VersionRow.recorded_at).is_(None))).all())


@pytest.fixture
def filled_harness(harness: Harness) -> Harness:
    harness.add_base()
    return harness


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


def test_a_push_that_is_never_committed_delays_records_but_does_not_stop_them(
    filled_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "QUIET_SECONDS", LONG_SECONDS)
    monkeypatch.setattr(background, "REFS_DELAY_SECONDS", 0.05)
    background.expect_commits(filled_harness.engine, ["psh_of_somebody_who_left"])
    filled_harness.push("acme/support")
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


def test_an_upload_of_a_push_that_was_just_planned_here_looks_nothing_up(
    filled_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signature of its link says what it may write. Another process, or this one later, asks the database."""
    looked_up: list[str] = []
    find_upload = commit.find_upload

    def note(session: Session, token_id: str, push_id: str, digest: Digest) -> bool:
        looked_up.append(push_id)
        return find_upload(session, token_id, push_id, digest)

    monkeypatch.setattr(commit, "find_upload", note)
    files = filled_harness.files()
    planned = plan_push(filled_harness.admin, "acme/support", PushRequest(manifest=filled_harness.manifest(files)))
    upload(filled_harness.admin, planned, files)
    assert looked_up == []
    assert commit_push(filled_harness.admin, planned.push_id).created
    upload(filled_harness.admin, planned, files)
    assert looked_up == [planned.push_id] * len(planned.uploads), "the push has ended"
