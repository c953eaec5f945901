"""Durations as people type and read them: `12h`, `7d`, "90 minutes"; and moments in UTC."""

import re
from datetime import UTC, datetime, timedelta

from registry.errors import Corrupt, Invalid

SECONDS_LIMIT = 100 * 366 * 86400
_DURATION = re.compile(r"([0-9]{1,10})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


def parse_duration(text: str, *, least: int = 1) -> int:
    """Seconds from a number with a unit: s, m, h, d or w. `Invalid` (REQUEST_INVALID).

    Example
        >>> parse_duration("90m"), parse_duration("7d")
        (5400, 604800)
    """
    match = _DURATION.fullmatch(text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else -1
    if not least <= seconds <= SECONDS_LIMIT:
        raise Invalid("REQUEST_INVALID", f"{text[:40]!r} is not a time such as 90s, 12h or 7d, of at most 100 years")
    return seconds


def format_duration(seconds: int) -> str:
    """Return seconds as `parse_duration` reads them, in the largest unit that is exact.

    Example
        >>> format_duration(5400), format_duration(1_209_600)
        ('90m', '2w')
    """
    unit, size = next((unit, size) for unit, size in reversed(_SECONDS.items()) if seconds % size == 0)
    return f"{seconds // size}{unit}"


def to_utc(at: datetime) -> datetime:
    """A moment of a registry's response in UTC. `Corrupt` (RESPONSE_INVALID) if its year there is not 1 to 9999."""
    try:
        return at.astimezone(UTC)
    except OverflowError as e:
        raise Corrupt(
            "RESPONSE_INVALID", f"the registry's response has a time outside of the years 1 to 9999: {at}"
        ) from e


def expiry(seconds: float | None) -> str | None:
    """The moment after so many seconds (ISO 8601); None for None."""
    if seconds is None:
        return None
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds")


def duration(seconds: int) -> str:
    """Seconds in the largest unit that is exact.

    Example
        >>> duration(86400), duration(5400)
        ('1 day', '90 minutes')
    """
    unit, size = next((unit, size) for unit, size in _UNITS if seconds % size == 0)
    count = seconds // size
    return f"{count} {unit}" + ("" if count == 1 else "s")


_AGES = ((60, 1, "s"), (3600, 60, "min"), (86_400, 3600, "h"), (30 * 86_400, 86_400, "day"))
"""Below how many seconds a unit is used, its seconds and its name."""


def relative(at: datetime | None, now: datetime | None = None) -> str:
    """A time as people say it: `3 h ago`, `in 2 days`, or the date if it is more than a month away.

    Example
        >>> relative(datetime(2026, 5, 3, 9, tzinfo=UTC), datetime(2026, 5, 3, 12, tzinfo=UTC))
        '3 h ago'
    """
    if at is None:
        return ""
    seconds = ((now or datetime.now(UTC)) - at).total_seconds()
    for limit, unit_seconds, unit in _AGES:
        if abs(seconds) < limit:
            count = int(abs(seconds) / unit_seconds)
            text = f"{count} {unit}" + ("s" if unit == "day" and count != 1 else "")
            return f"{text} ago" if seconds >= 0 else f"in {text}"
    return to_utc(at).strftime("%Y-%m-%d")
