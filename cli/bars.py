"""`Bars`: progress bars on a terminal, with a rate. The only room that imports rich, and loaded for a person only.

Invariants
- Nothing is drawn before bytes begin to move, and nothing stays behind.

Example
    >>> bars = Bars("acme/support")
    >>> bars.start(30_000_000)
    >>> bars.stop()
"""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


class Bars:
    """One bar on standard error."""

    def __init__(self, label: str) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task(label, total=None)

    def start(self, total_bytes: int) -> None:
        self._progress.start()
        self._progress.update(self._task, total=total_bytes)

    def advance(self, count: int) -> None:
        self._progress.update(self._task, advance=count)

    def above(self, show: Callable[[], None]) -> None:
        """Print something while the bar stays below it."""
        if not self._progress.live.is_started:
            show()
            return
        self._progress.stop()
        show()
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()
