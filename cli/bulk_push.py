"""`adapter push-all`: every adapter folder in a folder."""

from __future__ import annotations

from pathlib import Path

import click

from registry.api.transfer import PushResult
from registry.client import push
from registry.client.bulk import Result
from registry.errors import Invalid
from registry.files import CONFIG, WEIGHTS_ENDINGS

from . import output, provenance, session
from .bulk import document, leave, print_refused, quiet
from .progress import Bar
from .push import failed


@click.command("push-all")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("namespace")
@click.option("--base", default="", help="Base model of all adapters. Default: the one each configuration names.")
@click.option("--message", "-m", default="", help="What is new in these versions.")
@click.option("--provenance", "file", default="", help="Name of the provenance file in each folder.")
@click.option("--strict", is_flag=True, help="Exit with 6 if a verdict is fail.")
@output.json_option
def push_all(folder: Path, namespace: str, base: str, message: str, file: str, strict: bool) -> None:
    """Push each adapter folder in DIR as NAMESPACE/FOLDER.

    One failure does not stop the others; the report lists every folder.
    """
    adapter_folders = sorted(path for path in folder.iterdir() if path.is_dir() and _is_adapter(path))
    if not adapter_folders:
        raise Invalid("FOLDER_INVALID", f"{folder} holds no folder with {CONFIG} or a file of weights")
    folders = [(path, f"{namespace}/{path.name}") for path in adapter_folders]
    with session.versions() as registry, Bar(namespace) as bar:
        results = push.push_all(
            registry, folders, base=base, message=message, progress=bar, on_result=quiet(bar, _print_pushed),
            declared=lambda adapter_folder: provenance.of_file(adapter_folder / file) if file else None,
        )  # fmt: skip
    refused = sum(result.error is not None for result in results)
    fresh = sum(result.answer is not None and result.answer.created for result in results)
    bad = [r for r in results if r.answer and failed(r.answer.version.verdicts)]
    summary = f"{output.plural(fresh, 'new version')}, {len(results) - refused - fresh} unchanged, {refused} refused"
    output.answer(
        {"items": [document(result, "pushed") for result in results]},
        lambda: click.echo(summary + (f"; {len(bad)} with a failing verdict" if bad else "")),
    )
    leave(results, output.REFUSED if strict and bad else 0)


def _is_adapter(folder: Path) -> bool:
    """Whether a folder looks like an adapter of any tool: a configuration, or a file that may hold weights.

    One that cannot be read counts: its own push says what is wrong, and the others go on.
    """
    try:
        return (folder / CONFIG).is_file() or any(path.name.endswith(WEIGHTS_ENDINGS) for path in folder.iterdir())
    except OSError:
        return True


def _print_pushed(result: Result[PushResult]) -> None:
    if result.answer is None:
        print_refused(result)
        return
    version = result.answer.version
    state = "new" if result.answer.created else "unchanged"
    compat = next((v.outcome for v in reversed(version.verdicts) if v.check == "compat"), "")
    click.echo(f"{output.strong(f'{version.name}@{version.number}')}  {state}  compat {output.outcome(compat)}")
