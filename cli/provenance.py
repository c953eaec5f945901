"""What a version was made from, as options of `adapter push`: data sets, training run, commit, parameters, or a file.

Invariants
- What stands on the command line comes on top of the file: data sets are added, the rest replaces what the file says.
- It is checked before anything is read or sent, by the rules of the manifest.

Example
    $ adapter push out acme/support --dataset tickets=s3://data/tickets.jsonl --run mlflow:4f1c --param lr=2e-4
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from registry import provenance
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
    return Provenance.read(provenance.parse(file.read_bytes(), file=file.name))


def declared(
    datasets: tuple[str, ...], run: str, commit: str, parameters: tuple[str, ...], file: Path | None
) -> Provenance | None:
    """What these options declare; None for nothing. `Invalid` (PROVENANCE_INVALID) names the field and the rule."""
    values: dict[str, Any] = provenance.parse(file.read_bytes(), file=file.name) if file is not None else {}
    if datasets:
        written = values.get("datasets") or []
        if not isinstance(written, list):
            raise provenance.wrong(f"{provenance.FIELD}.datasets", "must be a list")
        values["datasets"] = [*written, *(provenance.dataset(text) for text in datasets)]
    if run:
        values["run"] = provenance.run(run)
    if commit:
        values["code"] = provenance.code(commit)
    if parameters:
        written = values.get("parameters") or {}
        if not isinstance(written, dict):
            raise provenance.wrong(f"{provenance.FIELD}.parameters", "must map names to values")
        values["parameters"] = {**written, **dict(provenance.parameter(text) for text in parameters)}
    return Provenance.read(values)
