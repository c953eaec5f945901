"""Rate limits of one process: requests and streams per token, failed sign-ins per network and per token prefix."""

import ipaddress
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

from registry.errors import Unavailable
from registry.token_secret import PREFIX, sha256_of

MINUTE_SECONDS = 60.0
RETRY_SECONDS = 15
WAITS_FOR_DIFFERENT = 32
"""Desired states (base, alias, engine) that a tenant waits for. Each is computed anew at every change of anything."""
UPLOADS_PER_TOKEN = 64
UPLOADS_PER_BLOB = 4
"""Uploads in progress in one process. Each may hold a temporary file of its own."""


class FailureLimiter:
    """Counts the failed sign-ins of the last minute, by source network and by the first letters of the secret.

    It stops floods, and guesses by someone who knows the beginning of a secret. A valid token is never limited by it.
    """

    ENTRIES_LIMIT = 10_000
    PREFIX_LETTERS = 12

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._failures: dict[tuple[str, str], deque[float]] = {}

    def record_failure(self, source: str, secret: str = "") -> None:
        """Count a failed sign-in. `Unavailable` (RATE_LIMITED) if there were too many in the last minute."""
        counters = [("wrong tokens from your network", source)]
        if secret.startswith(PREFIX) and len(secret) >= self.PREFIX_LETTERS:
            prefix_sha256 = sha256_of(secret[: self.PREFIX_LETTERS])
            counters.append(("wrong tokens that begin like this one", prefix_sha256))
        now = time.monotonic()
        with self._lock:
            waits = [(subject, self._count(subject, value, now)) for subject, value in counters]
        for subject, seconds in waits:
            if seconds > 0:
                raise rate_limited(subject, self._limit, seconds)

    def _count(self, subject: str, value: str, now: float) -> float:
        """Add one failure and return the seconds that its sender must wait."""
        times = self._failures.pop((subject, value), None)
        if times is None:
            while len(self._failures) >= self.ENTRIES_LIMIT:  # drop the entry that was used least recently
                del self._failures[next(iter(self._failures))]
            times = deque(maxlen=self._limit + 1)
        self._failures[subject, value] = times
        while times and now - times[0] > MINUTE_SECONDS:
            times.popleft()
        times.append(now)
        return MINUTE_SECONDS - (now - times[0]) if 0 < self._limit < len(times) else 0.0


def network_of(address: str) -> str:
    """Return the address for limits: one host has all of an IPv6 network of 64 bits.

    A socket for IPv6 that takes IPv4, too, gives those clients as `::ffff:192.0.2.1`, all of one network. What a proxy
    forwards may be any text: what is no address of IPv6 counts as it is.
    """
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))


class RequestLimiter:
    """Limits the requests of each token, or those without a token of each network, with a token bucket.

    `subject` names in errors what is limited, such as "requests with this token".
    """

    KEYS_LIMIT = 10_000

    def __init__(self, per_minute: int, subject: str) -> None:
        self._per_minute = per_minute
        self._subject = subject
        self._buckets: dict[str, tuple[float, float]] = {}
        """Token id or network → remaining requests, and the time at which that was computed."""

    def take(self, key: str) -> None:
        """Count a request of this token or network. `Unavailable` (RATE_LIMITED) if its bucket is empty."""
        if not self._per_minute:
            return
        now = time.monotonic()
        if len(self._buckets) >= self.KEYS_LIMIT:
            self._buckets = {}
        remaining, since = self._buckets.get(key, (float(self._per_minute), now))
        remaining = min(float(self._per_minute), remaining + (now - since) * self._per_minute / MINUTE_SECONDS)
        if remaining < 1:
            seconds = (1 - remaining) * MINUTE_SECONDS / self._per_minute
            raise rate_limited(self._subject, self._per_minute, seconds)
        self._buckets[key] = (remaining - 1, now)


class ConcurrencyLimiter:
    """Limits what is open at one time under one key, such as the event streams of a token; 0 is no limit."""

    def __init__(self, limit: int, subject: str) -> None:
        self._limit = limit
        self._subject = subject
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Count one until the end of the block. `Unavailable` (RATE_LIMITED) if there are too many."""
        with self._lock:
            if 0 < self._limit <= self._open[key]:
                raise Unavailable(
                    "RATE_LIMITED",
                    f"{self._limit} {self._subject} are open, which is the limit",
                    next_step="wait until one ends",
                    retry_after_seconds=RETRY_SECONDS,
                )
            self._open[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[key] -= 1
                if not self._open[key]:
                    del self._open[key]


class DifferentLimiter:
    """Limits how many different things of one key are open at one time, such as what a tenant waits for."""

    def __init__(self, limit: int, subject: str) -> None:
        self._limit, self._subject = limit, subject
        self._open: dict[str, Counter[object]] = {}

    @contextmanager
    def hold(self, key: str, thing: object) -> Iterator[None]:
        """Count a thing until the end of the block. `Unavailable` (RATE_LIMITED). Used on the event loop only."""
        things = self._open.setdefault(key, Counter())
        if thing not in things and len(things) >= self._limit:
            detail = f"{self._limit} different {self._subject} are open, which is the limit"
            raise Unavailable(
                "RATE_LIMITED", detail, next_step="wait until one ends", retry_after_seconds=RETRY_SECONDS
            )
        things[thing] += 1
        try:
            yield
        finally:
            things[thing] -= 1
            if not things[thing]:
                del things[thing]
            if not things:
                self._open.pop(key, None)


class SpentStates:
    """States of sign-ins that have come back, so that each comes back once. The oldest are forgotten."""

    ENTRIES_LIMIT = 10_000

    def __init__(self) -> None:
        self._spent: dict[str, None] = {}
        self._lock = threading.Lock()

    def __contains__(self, state: str) -> bool:
        return state in self._spent

    def add(self, state: str) -> bool:
        """Spend a state; return whether it was not spent before."""
        with self._lock:
            is_new = state not in self._spent
            self._spent[state] = None
            if len(self._spent) > self.ENTRIES_LIMIT:
                del self._spent[next(iter(self._spent))]
        return is_new


def rate_limited(subject: str, limit: int, seconds: float, per: str = "minute") -> Unavailable:
    """The error for a caller that must wait this many seconds."""
    wait = max(1, round(seconds + 0.5))
    return Unavailable(
        "RATE_LIMITED",
        f"{subject}: over the limit of {limit} per {per}",
        next_step=f"try again in {wait} seconds",
        retry_after_seconds=wait,
    )
