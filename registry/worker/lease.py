"""Renew a claimed job's lease from a thread, and report its loss.

It is renewed at a third of its length; an unreachable server is retried until the lease would have ended. After a loss
`on_lost` stops the work at once, and nothing of it may be sent: `check` raises.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

from registry.api.jobs import Claimed, RenewRequest
from registry.client.registry import Registry
from registry.errors import Conflict, NotFound, RegistryError, printable

PROGRESS_LIMIT = 500
RENEWALS_PER_LEASE = 3
"""Renewals in the time of one lease: two may get lost."""
PROGRESS_SECONDS = 0.5
"""Time that progress waits for more, so that quick steps cost one request."""


class Lost(Exception):
    """The job was given to another worker, or was cancelled: drop it."""


class HeldLease:
    """The lease of one job while it runs."""

    def __init__(self, registry: Registry, claimed: Claimed, *, on_lost: Callable[[], None]) -> None:
        self.token = claimed.lease.token
        self._registry = registry
        self._job = claimed.job.id
        self._seconds = claimed.lease.seconds
        self._on_lost = on_lost
        self._progress = ""
        self._lost = threading.Event()
        self._done = threading.Event()
        self._changed = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease of {self._job}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._changed.set()
        self._thread.join()

    def say(self, progress: str) -> None:
        """As `set_progress`, and raises `Lost` like `check`."""
        self.set_progress(progress)
        self.check()

    def set_progress(self, progress: str) -> None:
        """Send the progress soon, at most once in `PROGRESS_SECONDS`. May be called from any thread."""
        progress = printable(progress, PROGRESS_LIMIT)
        if progress != self._progress:
            self._progress = progress
            self._changed.set()

    def check(self) -> None:
        """Raise `Lost` if the lease is lost."""
        if self._lost.is_set():
            raise Lost(self._job)

    def _renew(self) -> None:
        ends = time.monotonic() + self._seconds
        while not self._done.is_set():
            self._changed.wait(self._seconds / RENEWALS_PER_LEASE)
            if self._done.wait(min(PROGRESS_SECONDS, self._seconds / RENEWALS_PER_LEASE)):
                return
            self._changed.clear()
            try:
                lease = self._registry.renew(self._job, RenewRequest(lease_token=self.token, progress=self._progress))
            except (Conflict, NotFound):
                break
            except RegistryError:  # not reachable now; the lease is still valid
                if time.monotonic() >= ends:
                    break
                continue
            ends = time.monotonic() + lease.seconds
        else:
            return
        self._lost.set()
        self._on_lost()
