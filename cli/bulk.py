"""`adapter push-all`. `pull-all` is in cli/pull.py: what pulls loads nothing of a push."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from registry.api.catalog import VersionView
from registry.api.transfer import PushResult
from registry.client import waiting
from registry.client.transfer import push
from registry.client.transfer.bulk import Result
from registry.errors import Invalid, RegistryError, Unavailable
from registry.names import AdapterName, Ref
from registry.versions.files import CONFIG, WEIGHTS_ENDINGS
from registry.versions.provenance import Provenance, parse_provenance_file, provenance_from_options

from . import main
from .console import arguments, output, session
from .console.progress import ProgressLine, end_with_results, result_reporter


@click.command("push-all")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("namespace")
@click.option("--base", default="", help="Base model of all adapters. Default: the one each configuration names.")
@click.option("--alias", default="", help="Afterwards move this alias to the versions, through its gate.")
@click.option("--tag", "tags", multiple=True, metavar="KEY[=VALUE]", help="Tag of the versions (repeatable).")
@click.option("--param", "parameters", multiple=True, metavar="NAME=VALUE", help="Hyperparameter (repeatable).")
@click.option("--message", "-m", default="", help="What is new in these versions.")
@click.option("--provenance", "file", default="", help="Name of the provenance file in each folder.")
@click.option("--wait", is_flag=True, help="Wait for the smoke tests, before the alias moves.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Stop waiting after this many seconds.")
@click.option("--strict", is_flag=True, help="Exit with 6 if a verdict is fail.")
def push_all(
    folder: Path, namespace: str, base: str, alias: str, tags: tuple[str, ...], parameters: tuple[str, ...],
    message: str, file: str, wait: bool, timeout: float | None, strict: bool,
) -> None:  # fmt: skip
    """Push each adapter folder in DIR as NAMESPACE/FOLDER.

    One failure does not stop the others; the report lists every folder. --strict, --alias and --wait wait until large
    weights are read.
    """
    adapter_folders = sorted(path for path in folder.iterdir() if path.is_dir() and _is_adapter(path))
    if not adapter_folders:
        raise Invalid("FOLDER_INVALID", f"{folder} has no folder with {CONFIG} or a file of weights")
    folders = [(path, f"{namespace}/{path.name}") for path in adapter_folders]
    declared = _declaration(file, parameters)
    waits = wait or timeout is not None
    needs_all = bool(waits or strict or alias or tags)
    with (
        session.registry() if needs_all else session.versions() as registry,
        ProgressLine(namespace, len(folders)) as progress,
    ):
        results = push.push_all(
            registry, folders, base=base, message=message, progress=progress,
            on_result=result_reporter(progress, _print_pushed), declared=declared,
        )  # fmt: skip
        if strict or alias or waits:
            until = time.monotonic() + (waiting.PENDING_SECONDS if timeout is None else timeout)
            results = [_with_verdicts(registry, result, until, tests=waits) for result in results]
        if tags:
            results = _with_tags(registry, results, {**arguments.tags(tags)})
        if alias:
            results = _with_alias(registry, results, alias, message)
    _end_pushes(results, strict=strict)


def _declaration(file: str, parameters: tuple[str, ...]) -> Callable[[Path], Provenance | None]:
    """What gives the declared inputs of each folder: its file, and the parameters of all."""

    def declared(folder: Path) -> Provenance | None:
        options = parse_provenance_file((folder / file).read_bytes(), file=file) if file else None
        return provenance_from_options(options, parameters=parameters)

    return declared


def _with_verdicts(registry: Any, result: Result[PushResult], until: float, *, tests: bool) -> Result[PushResult]:
    """The result with the verdict on the weights, and with `tests` after the smoke test; its error if that is late."""
    if result.answer is None:
        return result
    version = waiting.wait_for_weights(registry, result.answer.version, until)
    if tests and result.answer.job_id and not waiting.has_failed(version.verdicts):
        try:
            main.load(".jobs", "wait_for")(registry, result.answer.job_id, max(0.0, until - time.monotonic()))
        except Unavailable as e:
            return replace(result, error=e)
        version = registry.version(Ref(AdapterName.parse(version.name), version.digest))
    return replace(result, answer=result.answer.model_copy(update={"version": version}))


def _pushed(results: Sequence[Result[PushResult]]) -> list[tuple[int, VersionView]]:
    """Position and version of those results that have no error."""
    answers = enumerate((result.answer, result.error) for result in results)
    return [(n, answer.version) for n, (answer, error) in answers if answer is not None and error is None]


def _with_tags(
    registry: Any, results: list[Result[PushResult]], tags: dict[str, str | None]
) -> list[Result[PushResult]]:
    pushed = _pushed(results)
    item = main.load("registry.api.aliases", "DescribeItem")
    items = [item(subject=f"{version.name}@{version.number}", tags=tags) for _, version in pushed]
    results = [*results]
    for (position, _), outcome in zip(
        pushed,
        _groups(registry).change_metadata(items) if items else [],
        strict=True,
    ):
        results[position] = _updated(results[position], outcome, "tags")
    return results


def _with_alias(registry: Any, results: list[Result[PushResult]], alias: str, message: str) -> list[Result[PushResult]]:
    pushed = _pushed(results)
    item = main.load("registry.api.aliases", "MoveItem")
    items = [item(name=v.name, alias=alias, version=str(v.number), reason=message) for _, v in pushed]
    results = [*results]
    for (position, version), outcome in zip(
        pushed,
        _groups(registry).move_aliases(items) if items else [],
        strict=True,
    ):
        aliases = sorted({*version.aliases, alias})
        results[position] = _updated(results[position], outcome, "aliases", aliases)
    return results


def _groups(registry: Any) -> Any:
    return main.load("registry.client.groups", "Groups")(registry)


def _updated(result: Result[PushResult], outcome: Any, field: str, value: Any = None) -> Result[PushResult]:
    """The result with a field of its version as the outcome says, or with the outcome's error."""
    if isinstance(outcome, RegistryError):
        return replace(result, error=outcome)
    if result.answer is None:
        return result
    value = getattr(outcome, field) if value is None else value
    version = result.answer.version.model_copy(update={field: value})
    return replace(result, answer=result.answer.model_copy(update={"version": version}))


def _end_pushes(results: Sequence[Result[PushResult]], *, strict: bool) -> None:
    """Print the summary, and what went wrong after a version was pushed."""
    answered = [result for result in results if result.answer is not None]
    late = [result for result in answered if result.error is not None]
    gave_up = sum(isinstance(result.error, Unavailable) for result in results if result.answer is None)
    refused = len(results) - len(answered) - gave_up
    created = sum(result.answer is not None and result.answer.created for result in results)
    pushed = [result.answer.version for result in results if result.answer is not None]
    failing = sum(waiting.has_failed(version.verdicts) for version in pushed)
    pending = [version for version in pushed if waiting.is_pending(version.verdicts)]
    summary = f"{output.plural(created, 'new version')}, {len(answered) - created} unchanged, {refused} refused"
    summary += f", {gave_up} gave up" if gave_up else ""
    summary += f"; {failing} with a failing verdict" if failing else ""
    summary += f"; {len(pending)} with a pending verdict" if pending else ""
    summary += f"; {len(late)} not finished" if late else ""
    if output.is_text():
        for result in late:
            reason = result.error.detail if result.error is not None else ""
            output.line(f"{result.name}  {output.styled('not finished', 'red')}  {reason}")
    exit_code = output.REFUSED if failing else output.TRY_LATER if pending else 0
    end_with_results(results, "pushed", summary, exit_code if strict else 0)


# ------------------------------------------------------------------ results
def _is_adapter(folder: Path) -> bool:
    """Whether a folder has a configuration or a file that may hold weights.

    One that cannot be read counts: its own push reports why, and the others continue.
    """
    try:
        return (folder / CONFIG).is_file() or any(path.name.endswith(WEIGHTS_ENDINGS) for path in folder.iterdir())
    except OSError:
        return True


def _print_pushed(result: Result[PushResult]) -> None:
    if result.answer is not None:
        version = result.answer.version
        state = "new" if result.answer.created else "unchanged"
        compat = next((v.outcome for v in reversed(version.verdicts) if v.check == "compat"), "")
        title = output.strong(f"{version.name}@{version.number}")
        output.line(f"{title}  {state}  compat {output.outcome(compat)}")
