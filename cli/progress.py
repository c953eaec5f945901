"""`ProgressLine`: how many bytes have moved and how fast, on a terminal.

Example
    >>> with ProgressLine("acme/support") as line:
    ...     line.start(1_000_000)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

import click

from . import output

DRAW_EVERY_SECONDS = 0.1
_CLEAR = "\r\x1b[2K"


class ProgressLine:
    """One line on standard error while bytes move; nothing where no one watches. Threads may share it."""

    def __init__(self, label: str) -> None:
        self.total_bytes = 0
        self._label, self._watched = label, output.on_terminal()
        self._moved_bytes, self._started_at, self._drawn_at = 0, 0.0, 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()

    def start(self, total_bytes: int) -> None:
        """Set the total. A later call raises it."""
        self.total_bytes = total_bytes
        self._started_at = self._started_at or time.monotonic()

    def advance(self, count: int) -> None:
        """Count bytes that have moved, and draw the line if that is due."""
        if self._watched:
            with self._lock:
                self._moved_bytes += count
                self._draw()

    def above(self, show: Callable[[], None]) -> None:
        """Print something; the line moves below it."""
        with self._lock:
            self._clear()
            show()

    def _draw(self) -> None:
        now = time.monotonic()
        if now - self._drawn_at >= DRAW_EVERY_SECONDS:
            self._drawn_at = now
            rate = output.size(round(self._moved_bytes / max(now - self._started_at, 1e-3)))
            moved = f"{output.size(self._moved_bytes)} of {output.size(self.total_bytes)}"
            click.echo(f"{_CLEAR}{output.one_line(self._label)}  {moved}  {rate}/s", nl=False, err=True)

    def _clear(self) -> None:
        if self._drawn_at:
            click.echo(_CLEAR, nl=False, err=True)
