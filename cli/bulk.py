"""Many adapters at once: how `adapter push-all` and `adapter pull-all` tell what became of each.

Invariants
- Every adapter is tried and told of; the command then exits with the code of the first failure.
- What the registry or this machine holds already does not move, and is told as unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from registry.client.bulk import Result

from . import output
from .progress import Bar


def quiet(bar: Bar, show: Any) -> Any:
    """Results are told as they come, above the bar; in JSON they are all in the one document."""
    as_json = output.as_json()  # asked here: it looks at the command, which other threads do not have

    def told(result: Result[Any]) -> None:
        if not as_json:
            bar.above(lambda: show(result))

    return told


def document(result: Result[Any], what: str) -> dict[str, Any]:
    problem = result.error.to_problem() if result.error else None
    answer = output.document(result.answer)
    return {"folder": str(result.folder), "name": result.name, what: answer, "error": problem}


def print_refused(result: Result[Any]) -> None:
    detail = result.error.detail if result.error else ""
    click.echo(f"{result.name}  {click.style('refused', fg='red')}  {detail}")


def leave(results: Sequence[Result[Any]], otherwise: int) -> None:
    errors = [result.error for result in results if result.error]
    click.get_current_context().exit(output.exit_code_of(errors[0]) if errors else otherwise)
