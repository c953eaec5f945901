"""When a failed request is sent again: how many attempts, and how long the pauses between them are."""

import random
import time
from typing import Protocol

from registry.client.transport import DEADLINE
from registry.errors import Unavailable

ATTEMPTS_LIMIT = 4
PATIENT_ATTEMPTS_LIMIT = 16
"""For 502, 503 and 504, and for a restart that a patient request meets: until time is up."""
PAUSE_SECONDS = 0.2
PAUSE_LIMIT_SECONDS = 10.0


class Patience(Protocol):
    """What a connection says about attempts."""

    repeats: bool
    timeout_seconds: float
    has_own_disk: bool

    def wait(self, seconds: float, line: str = "") -> None:
        """Sleep, and report why if there is a line."""


class Retries:
    """Counts the attempts of one operation, and waits between them.

    `moves_files`: an attempt may take hours, so a few attempts are made however long they take.
    """

    def __init__(self, connection: Patience, *, moves_files: bool = False) -> None:
        self._connection, self._moves_files = connection, moves_files
        self._attempt, self._began, self._paused = 0, time.monotonic(), 0.0

    def wait(self, error: Unavailable, limit: int = PATIENT_ATTEMPTS_LIMIT) -> bool:
        """Wait before another attempt. False if there were `limit` attempts, time is up, or nothing is repeated.

        `has_own_disk`: nobody else mends the store while this process waits.
        """
        if self._connection.has_own_disk and error.code == "STORE_UNAVAILABLE":
            return False
        self._attempt += 1
        pause = _pause(self._attempt, error.retry_after_seconds)
        if self._moves_files and self._attempt == 1:
            self._began = time.monotonic()
        timeout = self._connection.timeout_seconds
        remaining = timeout - max(time.monotonic() - self._began, self._paused)
        remaining = min(remaining, DEADLINE.get() - time.monotonic())
        is_few = self._moves_files and self._attempt < ATTEMPTS_LIMIT and pause <= timeout
        if not self._connection.repeats or self._attempt >= limit or (pause > remaining and not is_few):
            return False
        duration = f" for {max(remaining, pause):.0f} seconds" if limit > ATTEMPTS_LIMIT else ""
        line = f"{error.detail}; trying again{duration}"
        self._connection.wait(pause, line if self._attempt > 2 else "")
        self._paused += pause
        return True


def _pause(attempt: int, retry_after_seconds: int | None) -> float:
    """Seconds to wait, with jitter: at least what the server asks for, else growing by two up to a limit."""
    if retry_after_seconds:
        return retry_after_seconds * random.uniform(1.0, 1.2)  # noqa: S311 - spreads load, guards nothing
    seconds: float = min(PAUSE_SECONDS * 2**attempt, PAUSE_LIMIT_SECONDS)
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311
