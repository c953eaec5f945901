"""Many events, and ways to change what is stored about them."""

from __future__ import annotations

from typing import Any

from registry.client.audit import Audit, ServerLog
from registry.events import EventType
from registry.server import audit
from registry.server.actors import TRUSTED
from registry.tlog.replay import Replay, replay
from tests.harness import Harness


def append(harness: Harness, count: int, *, start: int = 0) -> None:
    """Append events, and number and sign them."""
    with harness.session(write=True) as session:
        for number in range(start, start + count):
            audit.append(session, TRUSTED, EventType.ALIAS_MOVE, f"acme/a{number % 7}:prod", {"to": number})
    harness.app.state.audit_log.step()


def replayed(harness: Harness) -> Replay:
    """The whole log of a harness, replayed through its API with its own keys."""
    log = Audit(harness.admin)
    note = log.checkpoint()
    return replay(ServerLog(log, note), *harness.app.state.audit_log.keys.verifiers)


class LogCopy:
    """A log held in memory, to change one byte of it and put it back: a source of a replay."""

    def __init__(self, harness: Harness) -> None:
        log = Audit(harness.admin)
        self.note = log.checkpoint()
        self.lines = [event.entry() for event in log.events()]
        source = ServerLog(log, self.note)
        self.parts: dict[tuple[Any, ...], bytes] = {}
        from registry.tlog import tiles

        for level, index, width in tiles.widths(len(self.lines)):
            self.parts[level, index] = source.tiles(level, index, width)[0]
            if level == 0:
                self.parts["entries", index] = source.entries(index, width)

    def checkpoint(self) -> str:
        return self.note

    def tiles(self, level: int, index: int, _width: int) -> list[bytes]:
        return [self.parts[level, index]]

    def entries(self, index: int, _width: int) -> bytes:
        return self.parts["entries", index]

    def rows(self) -> Any:
        return iter(self.lines)
