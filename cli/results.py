"""The report of a command about many adapters: each is tried, and the exit code is that of the first failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from registry.client.bulk import Result
from registry.errors import Unavailable

from . import output
from .output import ProgressLine


def reporter(progress: ProgressLine, show: Callable[[Result[Any]], None]) -> Callable[[Result[Any]], None]:
    """Print each result above the progress when it is there; with --json nothing, because one document has them all."""
    as_json = output.as_json()  # other threads have no click context

    def report(result: Result[Any]) -> None:
        if as_json:
            return
        if result.error is None:
            progress.above(lambda: show(result))
        else:
            word = "gave up" if isinstance(result.error, Unavailable) else "refused"
            refusal = f"{result.name}  {output.styled(word, 'red')}  {result.error.detail}"
            progress.above(lambda: output.line(refusal))

    return report


def finish(results: Sequence[Result[Any]], key: str, summary: str, exit_code: int) -> None:
    """Print the results or the summary, and end with the exit code of the first error, else with this one."""
    items = [
        {"folder": str(result.folder), "name": result.name, key: result.answer,
         "error": result.error.to_problem() if result.error else None}
        for result in results
    ]  # fmt: skip
    output.answer({"items": items}, lambda: output.line(summary))
    errors = [result.error for result in results if result.error]
    output.exit_with(output.exit_code_of(errors[0]) if errors else exit_code)
