"""Keep a claimed job's lease alive from a thread of its own, and tell when it is lost.

Invariants
- Renewed at a third of its length; a server that cannot be reached is asked again until the lease would have ended.
- Once lost, the work is told at once (`on_lost`), and nothing of it may be sent: `check` raises.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from registry.api.jobs import Claimed, RenewRequest
from registry.client.registry import Registry
from registry.errors import Conflict, NotFound, RegistryError

RENEWALS_PER_LEASE = 3
"""How often a lease is renewed in the time that it lasts: two renewals may get lost."""
TELL_SECONDS = 0.5
"""How long news of the progress wait for more, so that quick steps cost one request."""


class Lost(Exception):
    """The job belongs to somebody else by now, or was cancelled: drop the work in silence."""


class Held:
    """The lease of one job while it is worked on."""

    def __init__(self, registry: Registry, claimed: Claimed, *, on_lost: Callable[[], None]) -> None:
        self.token = claimed.lease.token
        self._registry = registry
        self._job = claimed.job.id
        self._seconds = claimed.lease.seconds
        self._on_lost = on_lost
        self._progress = ""
        self._lost = threading.Event()
        self._done = threading.Event()
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease of {self._job}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._news.set()
        self._thread.join()

    def say(self, progress: str) -> None:
        """As `tell`, and raises `Lost` like `check`."""
        self.tell(progress)
        self.check()

    def tell(self, progress: str) -> None:
        """What is being done now; sent soon, at most once in `TELL_SECONDS`. May be called from any thread."""
        if progress != self._progress:
            self._progress = progress
            self._news.set()

    def check(self) -> None:
        if self._lost.is_set():
            raise Lost(self._job)

    def _renew(self) -> None:
        ends = time.monotonic() + self._seconds
        while not self._done.is_set():
            self._news.wait(self._seconds / RENEWALS_PER_LEASE)
            if self._done.wait(min(TELL_SECONDS, self._seconds / RENEWALS_PER_LEASE)):
                return
            self._news.clear()
            try:
                lease = self._registry.renew(
                    self._job, RenewRequest(lease_token=self.token, progress=self._progress[:500])
                )
            except (Conflict, NotFound):
                break
            except RegistryError:  # not reachable now; the lease still runs
                if time.monotonic() >= ends:
                    break
                continue
            ends = time.monotonic() + lease.seconds
        else:
            return
        self._lost.set()
        self._on_lost()
