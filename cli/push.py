"""`adapter push` and `push-all`: a folder as a new version, or every adapter folder in a folder.

`pull-all` is in cli/pull.py: what pulls loads nothing of a push.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from registry import names
from registry.api.aliases import DescribeItem, MoveItem
from registry.api.catalog import VersionMetadataChange, VersionView
from registry.api.transfer import PushResult
from registry.client import waiting
from registry.client.aliases import Groups
from registry.client.core import Versions
from registry.client.transfer import push as pushing
from registry.client.transfer.bulk import Result
from registry.durations import expiry
from registry.errors import Invalid, Refused, RegistryError, Unavailable
from registry.names import AdapterName, Ref
from registry.versions.files import CONFIG, WEIGHTS_ENDINGS
from registry.versions.provenance import Provenance, parse_provenance_file, provenance_from_options

from . import jobs
from .console import arguments, output, session, versions
from .console.options import Command
from .console.progress import ProgressLine, end_with_results, result_reporter
from .verify import signature_options


class _TargetName(arguments.ParsedArgument[AdapterName]):
    """The name that a push goes to. If it names a folder and DIR does not, the error says that they are swapped."""

    def __init__(self) -> None:
        super().__init__("name", AdapterName.parse, {"@": "a version", ":": "an alias"})

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> AdapterName:
        """Parse the typed text. `Invalid` (FOLDER_INVALID) if the arguments are swapped."""
        folder = ctx.params.get("folder") if ctx is not None else None
        if folder is not None and not Path(folder).exists() and Path(str(value)).is_dir():
            raise Invalid("FOLDER_INVALID", f"folder {str(folder)!r} does not exist, and {str(value)!r} is one",
                          next_step=f"the folder comes first: adapter push {value} {folder}")  # fmt: skip
        return super().convert(value, param, ctx)


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("name", type=_TargetName())
@click.option("--base", default="", help="Base model of the adapter. Default: the one its configuration names.")
@click.option("--alias", default="", help="Also move this alias to the new version, through its gate.")
@click.option(
    "--parent", "parents", multiple=True, type=arguments.REF, help="Version it was trained from (repeatable)."
)
@click.option("--tag", "tags", multiple=True, help="Tag, which can change later (repeatable).")
@click.option("--annotation", "annotations", multiple=True,
              help="Annotation, sealed in the version's digest (repeatable).")  # fmt: skip
@click.option("--dataset", "datasets", multiple=True, metavar="NAME=URI[@sha256:…]",
              help="Training data set (repeatable).")  # fmt: skip
@click.option("--run", default="", metavar="TOOL:ID[=URL]", help="Training run, such as mlflow:4f1c.")
@click.option("--commit", default="", metavar="URL@COMMIT", help="Training code and its commit.")
@click.option("--param", "parameters", multiple=True, metavar="NAME=VALUE", help="Hyperparameter (repeatable).")
@click.option("--provenance", "inputs_file", type=click.Path(path_type=Path),
              help="File with all declared inputs, JSON or TOML.")  # fmt: skip
@click.option("--expires", type=arguments.DURATION, metavar="TIME",
              help="Delete the version after 12h, 7d … unless something still uses it.")  # fmt: skip
@click.option("--message", "-m", default="", help="What is new in this version.")
@click.option("--golden", type=click.Path(path_type=Path), help="Prompts and expected answers (JSON lines).")
@click.option("--signing-key", "key", type=click.Path(path_type=Path), help="Private key that signs (PEM or OpenSSH).")
@click.option("--bundle", type=click.Path(path_type=Path), help="Existing signature: OpenSSF model signing bundle.")
@click.option("--public-key", type=click.Path(path_type=Path),
              help="With --bundle: public key, unless the bundle has a certificate.")  # fmt: skip
@click.option("--wait", is_flag=True, help="Wait for the smoke test's verdict; then move the alias.")
@arguments.wait_timeout
@click.option("--strict", is_flag=True, help="Exit with 6 if a verdict is fail.")
def push(
    folder: Path, name: AdapterName, base: str, alias: str, parents: tuple[Ref, ...], tags: tuple[str, ...],
    annotations: tuple[str, ...], message: str, golden: Path | None, key: Path | None, bundle: Path | None,
    public_key: Path | None, wait: bool, timeout: int | None, strict: bool, inputs_file: Path | None,
    expires: int | None, **inputs: Any,
) -> None:  # fmt: skip
    """Push the adapter in DIR as the newest version of NAME.

    `main` follows it unless it fails a check.
    Pushing the same files again yields the same version. Files that do not belong to an adapter are skipped and
    listed. An adapter that does not fit its base is stored with a failing verdict, and its gates stay closed;
    with --strict the command then exits 6. If the gate of --alias is closed, or you may not move it, the version is
    stored, the alias does not move, and the command exits 6. With --strict, --alias or --wait the command waits until
    large weights are read; exit 75 if that takes too long.

    --wait ends with the version's smoke verdict, and requests the test if none is under way. A version that failed
    `compat` or `weights` is not tested. The alias then moves unless one of these checks says fail. A worker must run:
    if none is at work for ten minutes, or after --wait-timeout, the command ends with exit 75, and the same command
    continues later.
    """
    _refuse_folder_of_adapters(folder, name)
    sealed = arguments.pairs(annotations, "--annotation", "KEY=VALUE", empty_values=True)
    new_tags: dict[str, str | None] = {**arguments.tags(tags)}
    alias = names.alias(alias) if alias else ""
    signature = None
    if key or bundle or public_key:
        signature = signature_options(key, bundle, public_key)
    options = parse_provenance_file(inputs_file.read_bytes(), file=inputs_file.name) if inputs_file else None
    declared = provenance_from_options(options, **inputs)
    late: RegistryError | None = None
    started = time.monotonic()
    waits = wait or timeout is not None
    with (session.registry if waits else session.versions)(patient=True) as registry:
        with ProgressLine(str(name)) as progress:
            pushed = pushing.push_folder(
                registry, folder, name, base=base, alias="" if waits else alias, parents=parents, annotations=sealed,
                provenance=declared, message=message, golden=golden, progress=progress, signature=signature,
                left_out=lambda reason: output.note(f"left out: {reason.location} {reason.message}"),
            )  # fmt: skip
        if tags or expires:
            pushed = _describe(registry, pushed, VersionMetadataChange(tags=new_tags, expires_at=expiry(expires)))
        was_pending = waiting.is_pending(pushed.version.verdicts)
        if waits or strict or pushed.alias_refused:
            until = started + (waiting.PENDING_SECONDS if timeout is None else timeout)
            pushed, late = _with_weights(registry, pushed, until)
        if waits and late is None:
            pushed, late = _with_job(registry, pushed)
        if waits and late is None:
            pushed, late = _with_test(registry, pushed, None if timeout is None else started + timeout)
        if not pushed.job_id:  # of a version that was here, and whose test may be queued
            pushed = pushed.model_copy(update={"job_id": versions.open_test(registry, pushed.version)})
    if alias and (waits or (pushed.alias_refused and was_pending)):
        pushed, late = _with_alias(pushed, late, alias, message)
    output.result(pushed, lambda: _print_pushed(pushed, progress.total_bytes, alias))
    session.note_embedded()
    if late is not None:  # the version is pushed: it is shown first
        raise late
    if pushed.alias_refused or (strict and waiting.failures(pushed.version.verdicts)):
        output.exit_with(output.REFUSED)


def _describe(registry: Versions, pushed: PushResult, change: VersionMetadataChange) -> PushResult:
    version = registry.describe(f"{pushed.version.name}@{pushed.version.digest}", change)
    return pushed.model_copy(update={"version": version})


Outcome = tuple[PushResult, RegistryError | None]
"""A push as it is now, and why a verdict is not there."""


def _with_weights(registry: Versions, pushed: PushResult, until: float) -> Outcome:
    version = waiting.wait_for_weights(registry, pushed.version, until)
    late = waiting.pending_error(version) if waiting.is_pending(version.verdicts) else None
    return pushed.model_copy(update={"version": version}), late


def _with_job(registry: Any, pushed: PushResult) -> Outcome:
    """The push with the job that tests it, or why there is none."""
    try:
        return waiting.request_smoke_test(registry, pushed, on_no_test=output.note), None
    except RegistryError as e:
        return pushed, e


def _with_test(registry: Any, pushed: PushResult, until: float | None, **options: Any) -> Outcome:
    if not pushed.job_id or waiting.has_decided(pushed.version.verdicts):
        return pushed, None
    seconds_left = None if until is None else max(0.0, until - time.monotonic())
    try:
        job = jobs.wait_for(registry, pushed.job_id, seconds_left, **options)
        version = registry.version(waiting.ref_of(pushed.version))
    except RegistryError as e:
        return pushed, e
    return pushed.model_copy(update={"version": version}), jobs.error_of(job)


def _with_alias(pushed: PushResult, late: RegistryError | None, alias: str, message: str) -> Outcome:
    """The push with its alias moved, if no verdict is late, or with the reason why not."""
    try:
        if late is None:
            with session.registry(patient=True) as registry:
                return waiting.move_alias(registry, pushed, alias, message), None
    except RegistryError as e:
        late = e
    return pushed.model_copy(update={"alias_refused": late.detail}), late


def _print_pushed(pushed: PushResult, sent_bytes: int, alias: str) -> None:
    version = pushed.version
    sent = output.size(sent_bytes) if sent_bytes else "nothing"
    existing = "" if pushed.created else f"  (exists already, {sent} sent)"
    output.line(f"{output.strong(f'{version.name}@{version.number}')}  {output.faint(version.digest)}{existing}")
    versions.print_warnings(version)
    files = f"{output.size(version.size_bytes)} in {output.plural(len(version.files), 'file')}"
    output.facts(
        [
            ("base", version.base),
            ("method", versions.method_line(version.facts)),
            ("size", files),
            ("verdicts", versions.verdict_lines(version.verdicts, f"{version.name}@{version.number}", pushed.job_id)),
            ("main", pushed.main.removeprefix("main ")),
            ("aliases", ", ".join(version.aliases)),
            ("tags", " ".join(versions.tag_texts(version.tags))),
            ("signed by", ", ".join(version.signed_by)),
            ("expires", output.moment(version.expires_at) if version.expires_at else ""),
            ("job", pushed.job_id),
        ]
    )
    if waiting.failures(version.verdicts):
        output.line(output.styled("  The version is stored; its gates stay closed.", "yellow"))
    if pushed.alias_refused:
        output.line(output.styled(f"  The alias did not move: {pushed.alias_refused}", "red"))
        output.line(f"  {output.strong('Next:')} adapter promote {version.name}@{version.number} {alias}")


@click.command("push-all", cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("namespace")
@click.option("--base", default="", help="Base model of all adapters. Default: the one each configuration names.")
@click.option("--alias", default="", help="Afterwards move this alias to the versions, through its gate.")
@click.option("--tag", "tags", multiple=True, help="Tag of the versions (repeatable).")
@click.option("--param", "parameters", multiple=True, metavar="NAME=VALUE", help="Hyperparameter (repeatable).")
@click.option("--message", "-m", default="", help="What is new in these versions.")
@click.option("--provenance", "file", default="", help="Name of the provenance file in each folder.")
@click.option("--wait", is_flag=True, help="Wait for the smoke tests' verdicts; then move the alias.")
@arguments.wait_timeout
@click.option("--strict", is_flag=True, help="Exit with 6 if a verdict is fail.")
def push_all(
    folder: Path, namespace: str, base: str, alias: str, tags: tuple[str, ...], parameters: tuple[str, ...],
    message: str, file: str, wait: bool, timeout: int | None, strict: bool,
) -> None:  # fmt: skip
    """Push each adapter folder in DIR as NAMESPACE/FOLDER.

    One failure does not stop the others; the report lists every folder. --strict, --alias and --wait wait until large
    weights are read. --wait is that of `adapter push`.
    """
    adapter_folders = sorted(path for path in folder.iterdir() if path.is_dir() and _is_adapter(path))
    if not adapter_folders:
        raise Invalid("FOLDER_INVALID", f"{folder} has no folder with {CONFIG} or a file of weights")
    folders = [(path, f"{namespace}/{path.name}") for path in adapter_folders]
    declared = _declaration(file, parameters)
    waits = wait or timeout is not None
    needs_all = bool(waits or strict or alias or tags)
    with (
        (session.registry if needs_all else session.versions)(patient=True) as registry,
        ProgressLine(namespace, len(folders)) as progress,
    ):
        results = pushing.push_all(
            registry, folders, base=base, message=message, progress=progress,
            on_result=result_reporter(progress, _print_result), declared=declared,
        )  # fmt: skip
        if tags:
            results = _with_tags(registry, results, {**arguments.tags(tags)})
        if strict or alias or waits:
            until = time.monotonic() + (waiting.PENDING_SECONDS if timeout is None else timeout)
            results = [_with_outcome(result, partial(_with_weights, registry, until=until)) for result in results]
        if waits:
            results = _with_tests(registry, results, None if timeout is None else until)
        if alias and waits:
            results = [_with_outcome(result, _without_failure) for result in results]
        if alias:
            results = _with_aliases(registry, results, alias, message)
    _end_pushes(results, strict=strict)


def _declaration(file: str, parameters: tuple[str, ...]) -> Callable[[Path], Provenance | None]:
    """What gives the declared inputs of each folder: its file, and the parameters of all."""

    def declared(folder: Path) -> Provenance | None:
        options = parse_provenance_file((folder / file).read_bytes(), file=file) if file else None
        return provenance_from_options(options, parameters=parameters)

    return declared


def _with_outcome(result: Result[PushResult], change: Callable[[PushResult], Outcome]) -> Result[PushResult]:
    """The result after a wait; its error if the verdict is late."""
    if result.value is None or result.error is not None:
        return result
    value, late = change(result.value)
    return replace(result, value=value, error=late)


def _with_tests(registry: Any, results: list[Result[PushResult]], until: float | None) -> list[Result[PushResult]]:
    """The results after the smoke tests, which are all requested first.

    Without a limit, waiting ends once no worker has taken a test for `QUEUED_SECONDS`.
    """
    queued_timeout = waiting.QUEUED_SECONDS
    tested = []
    for result in [_with_outcome(result, partial(_with_job, registry)) for result in results]:
        wait = partial(_with_test, registry, until=until, queued_timeout=queued_timeout, names_subject=True)
        tested.append(_with_outcome(result, wait))
        if until is None and result.error is None and _is_queued(registry, tested[-1]):
            queued_timeout = 0.0
    return tested


def _is_queued(registry: Any, result: Result[PushResult]) -> bool:
    """Whether waiting ended because no worker took the test."""
    if result.value is None or not isinstance(result.error, Unavailable):
        return False
    with suppress(RegistryError):
        return bool(registry.job(result.value.job_id).waits_for_a_worker)
    return True


def _without_failure(pushed: PushResult) -> Outcome:
    """The push, and an error if it failed a check: its alias does not move."""
    try:
        waiting.check_verdicts(pushed.version)
    except Refused as e:
        return pushed, e
    return pushed, None


def _with_tags(
    registry: Any, results: list[Result[PushResult]], tags: dict[str, str | None]
) -> list[Result[PushResult]]:
    return _with_changes(
        results,
        lambda pushed: Groups(registry).change_metadata([DescribeItem(subject=_title(v), tags=tags) for v in pushed]),
        lambda _version, outcome: {"tags": outcome.tags},
    )


def _with_aliases(
    registry: Any, results: list[Result[PushResult]], alias: str, message: str
) -> list[Result[PushResult]]:
    item = partial(MoveItem, alias=alias, reason=message)
    return _with_changes(
        results,
        lambda pushed: Groups(registry).move_aliases([item(name=v.name, version=str(v.number)) for v in pushed]),
        lambda version, _outcome: {"aliases": sorted({*version.aliases, alias})},
    )


def _with_changes(
    results: list[Result[PushResult]], send: Callable[[list[VersionView]], Sequence[Any]],
    fields_of: Callable[[VersionView, Any], dict[str, Any]],
) -> list[Result[PushResult]]:  # fmt: skip
    """The results after one bulk request about those versions that have no error: with new fields, or its error."""
    pushed = {n: result.value for n, result in enumerate(results) if result.value is not None and not result.error}
    changed = [*results]
    try:
        outcomes = send([item.version for item in pushed.values()])
    except RegistryError as e:  # such as a missing right: the pushes stay, and the report says so
        outcomes = [e] * len(pushed)
    for (position, item), outcome in zip(pushed.items(), outcomes, strict=True):
        if isinstance(outcome, RegistryError):
            changed[position] = replace(results[position], error=outcome)
            continue
        version = item.version.model_copy(update=fields_of(item.version, outcome))
        changed[position] = replace(results[position], value=item.model_copy(update={"version": version}))
    return changed


def _title(version: VersionView) -> str:
    return f"{version.name}@{version.number}"


def _end_pushes(results: Sequence[Result[PushResult]], *, strict: bool) -> None:
    """Print the summary, and what went wrong after a version was pushed."""
    done = [result for result in results if result.value is not None]
    late = [result for result in done if result.error is not None]
    gave_up = sum(isinstance(result.error, Unavailable) for result in results if result.value is None)
    refused = len(results) - len(done) - gave_up
    created = sum(result.value is not None and result.value.created for result in results)
    pushed = [result.value.version for result in results if result.value is not None]
    failing = sum(bool(waiting.failures(version.verdicts)) for version in pushed)
    pending = [version for version in pushed if waiting.is_pending(version.verdicts)]
    summary = f"{output.plural(created, 'new version')}, {len(done) - created} unchanged, {refused} refused"
    summary += f", {gave_up} gave up" if gave_up else ""
    summary += f"; {failing} with a failing verdict" if failing else ""
    summary += f"; {len(pending)} with a pending verdict" if pending else ""
    summary += f"; {len(late)} not finished" if late else ""
    if output.is_text():
        for result in late:
            reason = result.error.detail if result.error is not None else ""
            output.line(f"{result.name}  {output.styled('not finished', 'red')}  {reason}")
        if any(isinstance(result.error, Unavailable) for result in late):
            output.note("the same command continues, once a worker runs: `adapter worker`")
    exit_code = output.REFUSED if failing else output.TRY_LATER if pending else 0
    end_with_results(results, "pushed", summary, exit_code if strict else 0)


def _refuse_folder_of_adapters(folder: Path, name: AdapterName) -> None:
    """`Invalid` (FOLDER_INVALID) if the folder is no adapter, and folders in it are."""
    if _is_adapter(folder):
        return
    count = sum(path.is_dir() and _is_adapter(path) for path in folder.iterdir())
    if count:
        message = f"{folder} is no adapter; {output.plural(count, 'folder')} in it may be"
        next_step = f"push one of them, or all: `adapter push-all {folder} {name.namespace}`"
        raise Invalid("FOLDER_INVALID", message, next_step=next_step)


def _is_adapter(folder: Path) -> bool:
    """Whether a folder has a configuration or a file that may hold weights.

    One that cannot be read counts: its own push reports why, and the others continue.
    """
    try:
        return (folder / CONFIG).is_file() or any(path.name.endswith(WEIGHTS_ENDINGS) for path in folder.iterdir())
    except OSError:
        return True


def _print_result(result: Result[PushResult]) -> None:
    if result.value is not None:
        version = result.value.version
        state = "new" if result.value.created else "unchanged"
        compat = next((v.outcome for v in reversed(version.verdicts) if v.check == "compat"), "")
        others = [v for v in waiting.failures(version.verdicts) if v.check != "compat"]
        failed = "".join(f"  {v.check} {v.profile}".rstrip() + f" {output.outcome(v.outcome)}" for v in others)
        stays = f"  {result.value.main}" if result.value.main_number != version.number else ""
        output.line(f"{output.strong(_title(version))}  {state}  compat {output.outcome(compat)}{failed}{stays}")
