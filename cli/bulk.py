"""`adapter push-all` and `adapter pull-all`.

Every adapter is tried and reported. The exit code is that of the first failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from registry import names
from registry.api.catalog import Resolved
from registry.api.transfer import PushResult
from registry.client import pull, push
from registry.client.bulk import Result
from registry.client.core import Versions
from registry.errors import Invalid, Unavailable
from registry.files import CONFIG, WEIGHTS_ENDINGS
from registry.names import AdapterName, Ref

from . import output, session, versions
from .output import ProgressLine
from .push import provenance_of


@click.command("push-all")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("namespace")
@click.option("--base", default="", help="Base model of all adapters. Default: the one each configuration names.")
@click.option("--message", "-m", default="", help="What is new in these versions.")
@click.option("--provenance", "file", default="", help="Name of the provenance file in each folder.")
@click.option("--strict", is_flag=True, help="Exit with 6 if a verdict is fail.")
def push_all(folder: Path, namespace: str, base: str, message: str, file: str, strict: bool) -> None:
    """Push each adapter folder in DIR as NAMESPACE/FOLDER.

    One failure does not stop the others; the report lists every folder. --strict waits until large weights are read.
    """
    adapter_folders = sorted(path for path in folder.iterdir() if path.is_dir() and _is_adapter(path))
    if not adapter_folders:
        raise Invalid("FOLDER_INVALID", f"{folder} has no folder with {CONFIG} or a file of weights")
    folders = [(path, f"{namespace}/{path.name}") for path in adapter_folders]
    with session.versions() as registry, ProgressLine(namespace) as progress:
        results = push.push_all(
            registry, folders, base=base, message=message, progress=progress,
            on_result=_reporter(progress, _print_pushed),
            declared=lambda adapter_folder: provenance_of(adapter_folder / file) if file else None,
        )  # fmt: skip
        if strict:
            until = time.monotonic() + versions.PENDING_SECONDS
            results = [_with_weights(registry, result, until) for result in results]
    gave_up = sum(isinstance(result.error, Unavailable) for result in results)
    refused = sum(result.error is not None for result in results) - gave_up
    created = sum(result.answer is not None and result.answer.created for result in results)
    pushed = [result.answer.version for result in results if result.answer is not None]
    failing = sum(versions.has_failed(version.verdicts) for version in pushed)
    pending = [version for version in pushed if versions.is_pending(version.verdicts)]
    unchanged = len(results) - refused - gave_up - created
    summary = f"{output.plural(created, 'new version')}, {unchanged} unchanged, {refused} refused"
    summary += f", {gave_up} gave up" if gave_up else ""
    summary += f"; {failing} with a failing verdict" if failing else ""
    summary += f"; {len(pending)} with a pending verdict" if pending else ""
    exit_code = output.REFUSED if failing else output.TRY_LATER if pending else 0
    _end(results, "pushed", summary, exit_code if strict else 0)


@click.command("pull-all")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--base", required=True, help="Base model of the adapters.")
@click.option("--namespace", default="", help="Only adapters in this namespace.")
@click.option("--alias", default="", help="Pull what this alias points at. Default: the newest versions.")
def pull_all(folder: Path, base: str, namespace: str, alias: str) -> None:
    """Download every adapter of a base into DIR/NAMESPACE/NAME.

    One failure does not stop the others.
    """
    selector = names.selector(alias or names.NEWEST)
    with session.versions() as registry, ProgressLine(base) as progress:
        views = pull.adapters_of(registry, base, namespace=namespace, alias=alias)
        adapters = [AdapterName.parse(view.name) for view in views]
        refs = [(Ref(name, selector), folder / name.namespace / name.name) for name in adapters]
        results = pull.pull_all(registry, refs, progress=progress, on_result=_reporter(progress, _print_pulled))
    pulled = sum(result.answer is not None for result in results)
    summary = f"{output.plural(pulled, 'adapter')} in {folder}, {len(results) - pulled} failed"
    _end(results, "resolved", summary, 0)


def _with_weights(registry: Versions, result: Result[PushResult], until: float) -> Result[PushResult]:
    if result.answer is None:
        return result
    version = versions.wait_for_weights(registry, result.answer.version, until)
    return replace(result, answer=result.answer.model_copy(update={"version": version}))


def _is_adapter(folder: Path) -> bool:
    """Whether a folder has a configuration or a file that may hold weights.

    One that cannot be read counts: its own push reports why, and the others continue.
    """
    try:
        return (folder / CONFIG).is_file() or any(path.name.endswith(WEIGHTS_ENDINGS) for path in folder.iterdir())
    except OSError:
        return True


def _reporter(progress: ProgressLine, show: Callable[[Result[Any]], None]) -> Callable[[Result[Any]], None]:
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


def _print_pushed(result: Result[PushResult]) -> None:
    if result.answer is not None:
        version = result.answer.version
        state = "new" if result.answer.created else "unchanged"
        compat = next((v.outcome for v in reversed(version.verdicts) if v.check == "compat"), "")
        title = output.strong(f"{version.name}@{version.number}")
        output.line(f"{title}  {state}  compat {output.outcome(compat)}")


def _print_pulled(result: Result[Resolved]) -> None:
    if result.answer is not None:
        size = output.size(result.answer.manifest.size_bytes)
        output.line(f"{output.strong(f'{result.answer.name}@{result.answer.number}')}  {size}  {result.folder}")


def _end(results: Sequence[Result[Any]], key: str, summary: str, exit_code: int) -> None:
    items = [
        {"folder": str(result.folder), "name": result.name, key: result.answer,
         "error": result.error.to_problem() if result.error else None}
        for result in results
    ]  # fmt: skip
    output.answer({"items": items}, lambda: output.line(summary))
    errors = [result.error for result in results if result.error]
    output.exit_with(output.exit_code_of(errors[0]) if errors else exit_code)
