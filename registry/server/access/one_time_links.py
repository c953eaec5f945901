"""`OneTimeLinks`: codes that sign a browser in once, for the user of the machine on which the server runs."""

import secrets
import threading
import time

from registry.token_secret import sha256_of

LINK_SECONDS = 600
LINKS_LIMIT = 16


class OneTimeLinks:
    """The unused codes of this process, by their hash. A code is valid once, and for `LINK_SECONDS`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[str, float] = {}

    def create(self) -> str:
        """Return a new code. Of more than `LINKS_LIMIT` unused codes the oldest ones end."""
        code = secrets.token_urlsafe(32)
        with self._lock:
            self._ends[sha256_of(code)] = time.monotonic() + LINK_SECONDS
            while len(self._ends) > LINKS_LIMIT:
                del self._ends[next(iter(self._ends))]
        return code

    def use(self, code: str) -> bool:
        """Return whether the code is valid, and end it."""
        with self._lock:
            return time.monotonic() < self._ends.pop(sha256_of(code), 0.0)
