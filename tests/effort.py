"""How much work a call is, without a clock: lines of Python that it runs, and whether it ends at all.

- `lines` does not change with the machine or its load; compare two sizes to see how the work grows. The first call of
  a process also runs what it imports: make one of another size before. Probes of lines, which `make test` removes as
  they are hit, do not count.
- `ends` is for work inside C, where no line is run: what takes minutes of this process's own time for a small input
  grows too fast. A busy machine does not count.

Example
    assert effort.lines(lambda: evaluate(2 * many)) < 3 * effort.lines(lambda: evaluate(many))
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

ENDLESS_CPU_SECONDS = 120
_PROBES = "slipcover"  # by name: the tests of the light install run without it


def lines(call: Callable[[], object]) -> int:
    """Lines of Python that `call` runs in this thread."""
    count = 0

    def step(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        if event == "call" and frame.f_globals.get("__name__", "").partition(".")[0] == _PROBES:
            return None
        count += event == "line"
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@contextlib.contextmanager
def ends() -> Iterator[None]:
    """Fails instead of never ending. For the main thread."""

    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError("it would not end")

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, ENDLESS_CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
