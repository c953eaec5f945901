"""`Bar`: how far bytes have moved, on a terminal.

Example
    >>> with Bar("acme/support") as bar:
    ...     bar.start(1_000_000)
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from . import main, output


class Bar:
    """A progress bar on a terminal (cli/bars.py, which is slow to import); nothing elsewhere."""

    def __init__(self, label: str) -> None:
        self._bars = main.load(".bars", "Bars")(label) if output.on_terminal() else None
        self.total_bytes = 0

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def start(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        if self._bars:
            self._bars.start(total_bytes)

    def advance(self, count: int) -> None:
        if self._bars:
            self._bars.advance(count)

    def above(self, show: Callable[[], None]) -> None:
        """Print something while the bar stays below it."""
        self._bars.above(show) if self._bars else show()
