"""Progress on standard error, and the reports of commands about many adapters."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from registry import errors

from . import output
from .tables import Column, Table

if TYPE_CHECKING:
    from registry.client.transfer.bulk import Result

DRAW_EVERY_SECONDS = 0.1
ETA_AFTER_SECONDS = 1.0


def on_terminal() -> bool:
    """Whether a person watches: only then is progress shown."""
    return sys.stderr.isatty() and output.is_text() and not output.setting("quiet")


class ProgressLine:
    """One line on standard error while bytes move; nothing where no one watches. Threads may share it.

    `acme  12 of 41  3.2 MB of 10.0 MB  1.1 MB/s  6 s left`
    """

    def __init__(self, label: str, total_items: int = 0) -> None:
        self.total_bytes, self.total_items = 0, total_items
        self._label, self.is_watched = label, on_terminal()
        self._moved_bytes, self._items, self._started_at, self._drawn_at = 0, 0, time.monotonic(), 0.0
        self._sized_items = 0
        """How many totals came; a group has one. Until each adapter has one, the adapters give the time left."""
        self._lock = threading.Lock()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()

    def start(self, total_bytes: int) -> None:
        """Set the total. A later call raises it."""
        if not self.total_bytes:
            self._started_at = time.monotonic()
        self.total_bytes = total_bytes
        self._sized_items += 1

    def advance(self, count: int) -> None:
        """Count bytes that have moved, and draw the line if that is due."""
        if self.is_watched:
            with self._lock:
                self._moved_bytes += count
                self._draw()

    def finish_item(self) -> None:
        """Count an adapter that is done."""
        if self.is_watched:
            with self._lock:
                self._items += 1
                self._draw()

    def count_items(self, count: int, total: int) -> None:
        """Set how many of all are done, where the total is not known from the start."""
        if self.is_watched:
            with self._lock:
                self._items, self.total_items = count, total
                self._draw()

    def above(self, show: Callable[[], None]) -> None:
        """Print something; the line moves below it."""
        with self._lock:
            self._clear()
            show()

    def text(self, now: float) -> str:
        """The line at a moment of `time.monotonic`."""
        seconds = max(now - self._started_at, 1e-3)
        parts = [output.one_line(self._label)]
        share = 0.0
        if self.total_items:
            parts.append(f"{self._items} of {self.total_items}")
            share = self._items / self.total_items
        if self.total_bytes:
            parts.append(f"{output.size(self._moved_bytes)} of {output.size(self.total_bytes)}")
            parts.append(f"{output.size(round(self._moved_bytes / seconds))}/s")
            if self._sized_items >= self.total_items:
                share = max(share, self._moved_bytes / self.total_bytes)
        if 0 < share < 1 and seconds >= ETA_AFTER_SECONDS:
            parts.append(f"{output.duration(seconds * (1 - share) / share)} left")
        return "  ".join(parts)

    def _draw(self) -> None:
        now = time.monotonic()
        if now - self._drawn_at >= DRAW_EVERY_SECONDS:
            self._drawn_at = now
            click.echo(f"{output.CLEAR_LINE}{self.text(now)}", nl=False, err=True)

    def _clear(self) -> None:
        if self._drawn_at:
            click.echo(output.CLEAR_LINE, nl=False, err=True)


def result_reporter(progress: ProgressLine, show: Callable[[Result[Any]], None]) -> Callable[[Result[Any]], None]:
    """Print each result above the progress when it is there; nothing if the whole result is one document or table."""
    is_text = output.is_text()  # other threads have no click context

    def report(result: Result[Any]) -> None:
        progress.finish_item()
        if not is_text:
            return
        if result.error is None:
            progress.above(lambda: show(result))
        else:
            word = "gave up" if isinstance(result.error, errors.Unavailable) else "refused"
            refusal = f"{result.name}  {output.styled(word, 'red')}  {result.error.detail}"
            progress.above(lambda: output.line(refusal))

    return report


RESULTS: Table[Result[Any]] = Table((
    Column("name", lambda result: result.name),
    Column("folder", lambda result: str(result.folder)),
    Column("outcome", lambda result: "done" if result.error is None else "error"),
    Column("code", lambda result: result.error.code if result.error else ""),
    Column("message", lambda result: result.error.detail if result.error else ""),
))  # fmt: skip


def end_with_results(results: Sequence[Result[Any]], key: str, summary: str, exit_code: int) -> None:
    """Print the results or the summary, and end with the exit code of the first error, else with this one."""
    items = [
        {"folder": str(result.folder), "name": result.name, key: result.value,
         "error": result.error.to_problem() if result.error else None}
        for result in results
    ]  # fmt: skip
    if output.is_text():
        output.line(summary)
    else:
        RESULTS.print(results, document={"items": items})
    failures = [result.error for result in results if result.error]
    output.exit_with(output.exit_code_of(failures[0]) if failures else exit_code)
