"""What a version was made from, as options of `adapter push`: data sets, training run, commit, parameters, or a file.

Invariants
- It is checked before anything is read or sent (registry/declared.py, loaded where something is declared).

Example
    $ adapter push out acme/support --dataset tickets=s3://data/tickets.jsonl --run mlflow:4f1c --param lr=2e-4
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cli import main
from registry.provenance import Provenance

Command = TypeVar("Command", bound=Callable[..., Any])
_OPTIONS = (
    click.option(
        "--dataset", "datasets", multiple=True, metavar="NAME=URI[@sha256:…]", help="Trained on this; repeat it."
    ),
    click.option("--run", "run", default="", metavar="TOOL:ID[=URL]", help="The training run, e.g. mlflow:4f1c."),
    click.option("--commit", "commit", default="", metavar="URL@COMMIT", help="The repository and commit of the code."),
    click.option("--param", "parameters", multiple=True, metavar="NAME=VALUE", help="A hyper-parameter; repeat it."),
    click.option(
        "--provenance", "file", type=click.Path(path_type=Path), help="All of these in one file, JSON or TOML."
    ),
)


def options(command: Command) -> Command:
    """Give a command the options that `declared` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def of_file(file: Path) -> Provenance | None:
    """What a file declares. `Invalid` (PROVENANCE_INVALID) names the field and the rule."""
    found: Provenance | None = main.load("registry.declared", "of_file")(file.read_bytes(), file=file.name)
    return found


def declared(
    datasets: tuple[str, ...], run: str, commit: str, parameters: tuple[str, ...], file: Path | None
) -> Provenance | None:
    """What these options declare; None for nothing. `Invalid` (PROVENANCE_INVALID) names the field and the rule."""
    if file is None and not (datasets or run or commit or parameters):
        return None
    given = main.load("registry.declared", "parse")(file.read_bytes(), file=file.name) if file is not None else None
    found: Provenance | None = main.load("registry.declared", "of_options")(
        given, datasets=datasets, run=run, commit=commit, parameters=parameters
    )
    return found
