"""`Slots`: what one engine has of which version and how it is there, as the passes see it and reports tell it.

Invariants
- Names are served names; a version that nobody has named to this agent is not spoken of.
- It may be read at any moment, also in the middle of a pass: `changed` is set whenever a reader would see more.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from registry.api.serving import REASON_LIMIT, SlotReport, SlotState
from registry.digest import Digest


class Slots:
    """Thread-safe."""

    def __init__(self) -> None:
        self.changed = threading.Event()
        self._rows: dict[str, SlotReport] = {}
        self._lock = threading.Lock()

    def note(
        self, served: str, adapter: str, digest: Digest, state: SlotState, *, reason: str = "", verified: bool = False
    ) -> None:
        row = SlotReport(
            adapter=adapter,
            digest=digest,
            served_name=served,
            state=state,
            reason=reason[:REASON_LIMIT],
            verified=verified,
        )
        with self._lock:
            if self._rows.get(served) == row:
                return
            self._rows[served] = row
        self.changed.set()

    def keep_only(self, served: Iterable[str]) -> None:
        with self._lock:
            gone = self._rows.keys() - set(served)
            for name in gone:
                del self._rows[name]
        if gone:
            self.changed.set()

    def all(self) -> list[SlotReport]:
        """By served name, so that two equal states are equal lists."""
        with self._lock:
            return sorted(self._rows.values(), key=lambda row: row.served_name)
