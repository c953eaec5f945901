"""Named points at which a test lets the server die, fail or wait. They are armed once, by the settings.

    REGISTRY_FAILPOINTS="push.after_promote=kill@2 gc.claimed=raise:OSError"

    kill, raise:KIND     end the process as kill -9 does; raise OSError, MemoryError or Unavailable
    sleep:SECONDS        be slow
    wait:FILE            create FILE.reached, then continue once FILE exists

`@N` at the end: only the N-th time that the point is reached in this process.
"""

import logging
import os
import re
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from registry.errors import Invalid, Unavailable

WAIT_STEP_SECONDS = 0.01
WAIT_LIMIT_SECONDS = 60.0
_WORD = re.compile(r"(?P<name>[a-z_.]+)=(?P<act>kill|raise|sleep|wait)(?::(?P<how>[^@]+))?(?:@(?P<turn>[1-9]\d*))?\Z")
_KINDS = {
    "OSError": OSError("a failpoint"),
    "MemoryError": MemoryError("a failpoint"),
    "Unavailable": Unavailable("TRY_LATER", "a failpoint", retry_after_seconds=0),
}
_LOG = logging.getLogger("registry.server")


@dataclass
class Point:
    """What happens at one name. `turn` 0 is every time."""

    act: str
    how: str
    turn: int
    reached: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


_armed: dict[str, Point] = {}


def arm(text: str) -> None:
    """Arm the points of a setting, and no others. `Invalid` (SETTING_INVALID) for what cannot be read."""
    points = {}
    for word in text.split():
        match = _WORD.match(word)
        if match is None or not _sensible(match["act"], match["how"] or ""):
            raise Invalid("SETTING_INVALID", f"REGISTRY_FAILPOINTS: {word[:80]!r} is not NAME=ACT such as x.y=kill@2")
        points[match["name"]] = Point(match["act"], match["how"] or "", int(match["turn"] or 0))
    _armed.clear()
    _armed.update(points)
    if points:
        _LOG.warning("failpoints are armed: %s", text)


def reach(name: str) -> None:
    """Do what is armed here. Call it by its full name, as a literal: a test looks for each of them."""
    if not _armed:
        return
    point = _armed.get(name)
    if point is None:
        return
    with point.lock:
        point.reached += 1
        if point.turn not in (0, point.reached):
            return
    if point.act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif point.act == "raise":
        raise _KINDS[point.how]
    elif point.act == "sleep":
        time.sleep(float(point.how))
    else:
        _wait(Path(point.how))


def _sensible(act: str, how: str) -> bool:
    if act == "raise":
        return how in _KINDS
    if act == "sleep":
        return re.fullmatch(r"\d{1,3}(\.\d+)?", how) is not None
    return bool(how) == (act == "wait")


def _wait(file: Path) -> None:
    file.with_name(file.name + ".reached").touch()
    limit = time.monotonic() + WAIT_LIMIT_SECONDS
    while not file.exists() and time.monotonic() < limit:
        time.sleep(WAIT_STEP_SECONDS)
