"""`CircuitBreaker`: after a call that timed out, reject the next ones at once instead of letting them wait as well."""

from __future__ import annotations

import threading
import time

PAUSE_SECONDS = 5.0


class CircuitBreaker:
    """Opens after a timeout and closes after any response, even an error. Thread-safe.

    While it is open, one call in `PAUSE_SECONDS` may try again on behalf of all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open_until: float | None = None

    def rejects_call(self) -> bool:
        """Whether a call should fail now. The first one after the pause may try, and starts the next pause."""
        with self._lock:
            now, open_until = time.monotonic(), self._open_until
            if open_until is not None and now >= open_until:
                self._open_until = now + PAUSE_SECONDS
            return open_until is not None and now < open_until

    def record(self, *, responded: bool) -> None:
        """Record whether the store responded to a call."""
        with self._lock:
            self._open_until = None if responded else time.monotonic() + PAUSE_SECONDS
