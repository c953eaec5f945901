"""`Uploads`: the queue of checkpoints, and what stays in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.errors import Invalid, Unavailable
from registry.training.uploads import SavedCheckpoint, Uploads


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_a_full_queue_drops_the_oldest_and_says_so(gate: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    pushed: list[int] = []
    started = threading.Event()

    def push(checkpoint: SavedCheckpoint) -> None:
        started.set()
        gate.wait(60)
        pushed.append(checkpoint.step)

    discarded: list[int] = []
    uploads = Uploads(push, limit=2)
    for step in range(5):
        uploads.add(SavedCheckpoint(Path(), step, {}, lambda step=step: discarded.append(step)))  # type: ignore[misc]
        started.wait(60)
    assert "checkpoint 1 was not pushed: 2 others wait" in caplog.text
    gate.set()
    assert uploads.flush(60) == 0
    assert pushed == [0, 3, 4]
    assert sorted(discarded) == [0, 1, 2, 3, 4]


def test_the_end_of_a_training_waits_no_longer_than_it_may(gate: threading.Event) -> None:
    def push(_checkpoint: SavedCheckpoint) -> None:
        gate.wait(60)

    uploads = Uploads(push)
    uploads.add(SavedCheckpoint(Path(), 1, {}, lambda: None))
    assert uploads.flush(0.01) == 1
    gate.set()
    assert uploads.flush(60) == 0


def test_while_the_registry_is_unavailable_checkpoints_stay_and_are_counted() -> None:
    def fail(_checkpoint: SavedCheckpoint) -> None:
        raise Unavailable("SERVER_UNREACHABLE", "the registry is away")

    uploads = Uploads(fail)
    for step in (1, 2):
        uploads.add(SavedCheckpoint(Path(), step, {}, lambda: pytest.fail("discarded")))
    assert uploads.flush(60) == 2


def test_a_refused_checkpoint_does_not_keep_the_next_ones_from_being_pushed(caplog: pytest.LogCaptureFixture) -> None:
    pushed: list[int] = []

    def push(checkpoint: SavedCheckpoint) -> None:
        if checkpoint.step == 1:
            raise Invalid("FOLDER_INVALID", "no weights")
        pushed.append(checkpoint.step)

    uploads, discarded = Uploads(push), []
    for step in (1, 2):
        uploads.add(SavedCheckpoint(Path(), step, {}, lambda step=step: discarded.append(step)))  # type: ignore[misc]
    assert uploads.flush(60) == 0
    assert (pushed, discarded) == ([2], [1, 2])
    assert "checkpoint 1 was not pushed: no weights" in caplog.text


@pytest.mark.security
def test_what_a_registry_says_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_checkpoint: SavedCheckpoint) -> None:
        raise Invalid("REQUEST_INVALID", "no\x1b]52;c;aGk=\x07\nroot did it")

    uploads = Uploads(fail)
    uploads.add(SavedCheckpoint(Path(), 1, {}, lambda: None))
    assert uploads.flush(60) == 0
    [record] = caplog.records
    assert record.getMessage().isprintable()
