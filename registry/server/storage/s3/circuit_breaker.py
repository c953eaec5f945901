"""`Outage`: after a call that the store did not answer in its time, the next ones are refused instead of waiting, too.

Invariants
- Any answer of the store ends it, also an error: a store that speaks is there.
- While it lasts, one call in `PAUSE_SECONDS` is let through and finds out.
"""

from __future__ import annotations

import threading
import time

PAUSE_SECONDS = 5.0


class Outage:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: float | None = None

    def refuses(self) -> bool:
        """Whether a call that would begin now should not. One that may is the one that finds out for the others."""
        with self._lock:
            now, until = time.monotonic(), self._until
            if until is not None and now >= until:
                self._until = now + PAUSE_SECONDS
            return until is not None and now < until

    def note(self, *, answered: bool) -> None:
        """What became of a call."""
        with self._lock:
            self._until = None if answered else time.monotonic() + PAUSE_SECONDS
