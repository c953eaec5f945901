"""The options of `adapter push` that declare inputs: data sets, training run, commit, parameters, or a file.

They are checked before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from registry.provenance import Provenance, parse_provenance_file, provenance_from_options

Command = TypeVar("Command", bound=Callable[..., Any])
_OPTIONS = (
    click.option(
        "--dataset", "datasets", multiple=True, metavar="NAME=URI[@sha256:…]", help="Training data set (repeatable)."
    ),
    click.option("--run", "run", default="", metavar="TOOL:ID[=URL]", help="Training run, such as mlflow:4f1c."),
    click.option("--commit", "commit", default="", metavar="URL@COMMIT", help="Training code and its commit."),
    click.option("--param", "parameters", multiple=True, metavar="NAME=VALUE", help="Hyperparameter (repeatable)."),
    click.option(
        "--provenance", "file", type=click.Path(path_type=Path), help="File with all declared inputs, JSON or TOML."
    ),
)


def options(command: Command) -> Command:
    """Add the options that `declared` takes to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def of_file(file: Path) -> Provenance | None:
    """The inputs that a file declares. `Invalid` (PROVENANCE_INVALID) names the field and the rule."""
    return Provenance.read(parse_provenance_file(file.read_bytes(), file=file.name))


def declared(
    datasets: tuple[str, ...], run: str, commit: str, parameters: tuple[str, ...], file: Path | None
) -> Provenance | None:
    """The declared inputs; None without any. `Invalid` (PROVENANCE_INVALID) names the field and the rule."""
    if file is None and not (datasets or run or commit or parameters):
        return None
    from_file = parse_provenance_file(file.read_bytes(), file=file.name) if file is not None else None
    return provenance_from_options(from_file, datasets=datasets, run=run, commit=commit, parameters=parameters)
