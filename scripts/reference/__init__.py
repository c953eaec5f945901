"""The reference pages of the documentation, generated from the code.

`make reference` writes docs/reference/; tests/test_reference.py fails while a page differs. The pages are committed, so
that they can be read in the repository and a review shows what a change means to users.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from registry.api.operations.table import TAGS
from scripts.reference import (
    cli,
    engine_classes,
    engines,
    errors,
    events,
    findings,
    limits,
    methods,
    metrics,
    rest,
    settings,
)

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"
PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli.markdown,
    "engine-classes.md": engine_classes.markdown,
    "engines.md": engines.markdown,
    "errors.md": errors.markdown,
    "events.md": events.markdown,
    "findings.md": findings.markdown,
    "limits.md": limits.markdown,
    "methods.md": methods.markdown,
    "metrics.md": metrics.markdown,
    "rest.md": rest.markdown,
    **{f"schemas-{tag.name}.md": partial(rest.schemas, tag.name) for tag in TAGS},
    "settings.md": settings.markdown,
}


def write() -> None:
    """Write every page."""
    FOLDER.mkdir(exist_ok=True)
    for name, markdown in PAGES.items():
        (FOLDER / name).write_text(markdown())
