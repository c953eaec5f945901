"""`adapter push`: pushes a folder as a new version."""

import time
from pathlib import Path
from typing import Any

import click

from registry.api.catalog import VersionMetadataChange, VersionView
from registry.api.transfer import PushResult
from registry.client import waiting
from registry.client.core import Versions
from registry.client.transfer import push as pushing
from registry.durations import expiry
from registry.errors import Refused
from registry.findings import Finding
from registry.names import AdapterName, Ref
from registry.versions.provenance import parse_provenance_file, provenance_from_options

from . import main, versions
from .console import arguments, output, session
from .console.progress import ProgressLine


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("name", type=arguments.NAME)
@click.option("--base", default="", help="Base model of the adapter. Default: the one its configuration names.")
@click.option("--alias", default="", help="Also move this alias to the new version, through its gate.")
@click.option(
    "--parent", "parents", multiple=True, type=arguments.REF, help="Version it was trained from (repeatable)."
)
@click.option("--tag", "tags", multiple=True, metavar="KEY[=VALUE]", help="Tag, which can change later (repeatable).")
@click.option("--annotation", "annotations", multiple=True, metavar="KEY=VALUE",
              help="Annotation, sealed in the version's digest (repeatable).")  # fmt: skip
@click.option("--dataset", "datasets", multiple=True, metavar="NAME=URI[@sha256:…]",
              help="Training data set (repeatable).")  # fmt: skip
@click.option("--run", default="", metavar="TOOL:ID[=URL]", help="Training run, such as mlflow:4f1c.")
@click.option("--commit", default="", metavar="URL@COMMIT", help="Training code and its commit.")
@click.option("--param", "parameters", multiple=True, metavar="NAME=VALUE", help="Hyperparameter (repeatable).")
@click.option("--provenance", "inputs_file", type=click.Path(path_type=Path),
              help="File with all declared inputs, JSON or TOML.")  # fmt: skip
@click.option(
    "--expires", type=arguments.DURATION, metavar="TIME", help="Delete it after 12h, 7d …, unless needed then."
)
@click.option("--message", "-m", default="", help="What is new in this version.")
@click.option("--golden", type=click.Path(path_type=Path), help="Prompts and expected answers (JSON lines).")
@click.option("--sign", "key", type=click.Path(path_type=Path), help="Sign with this private key (PEM or OpenSSH).")
@click.option("--bundle", type=click.Path(path_type=Path), help="Existing signature: OpenSSF model signing bundle.")
@click.option("--public-key", type=click.Path(path_type=Path),
              help="With --bundle: public key, unless the bundle has a certificate.")  # fmt: skip
@click.option("--wait", is_flag=True, help="Wait for the smoke test, or for the first verdict that is fail.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Stop waiting after this many seconds.")
@click.option("--strict", is_flag=True, help="Exit with 6 if a verdict is fail.")
def push(
    folder: Path, name: AdapterName, base: str, alias: str, parents: tuple[Ref, ...], tags: tuple[str, ...],
    annotations: tuple[str, ...], message: str, golden: Path | None, key: Path | None, bundle: Path | None,
    public_key: Path | None, wait: bool, timeout: float | None, strict: bool, inputs_file: Path | None,
    expires: int | None, **inputs: Any,
) -> None:  # fmt: skip
    """Push the adapter in DIR as the newest version of NAME.

    Pushing the same files again yields the same version. Files that do not belong to an adapter are skipped and
    listed. An adapter that does not fit its base is stored with a failing verdict, and its gates stay closed;
    --strict makes that exit 6. If the gate of --alias is closed, the version is stored and the alias does not move.
    With --strict, --alias or --wait the command waits until large weights are read; exit 75 if that takes too long.
    """
    sealed = arguments.pairs(annotations, "--annotation", "KEY=VALUE", empty_values=True)
    new_tags: dict[str, str | None] = {**arguments.tags(tags)}
    signature = None
    if key or bundle or public_key:
        signature = main.load(".verify", "signature_options")(key, bundle, public_key)
    options = parse_provenance_file(inputs_file.read_bytes(), file=inputs_file.name) if inputs_file else None
    declared = provenance_from_options(options, **inputs)
    job: Any = None
    started = time.monotonic()
    waits = wait or timeout is not None
    with session.registry() if waits else session.versions() as registry:
        with ProgressLine(str(name)) as progress:
            pushed = pushing.push_folder(
                registry, folder, name, base=base, alias=alias, parents=parents, annotations=sealed,
                provenance=declared, message=message, golden=golden, progress=progress, left_out=_print_left_out,
                signature=signature,
            )  # fmt: skip
        if tags or expires:
            pushed = _describe(registry, pushed, VersionMetadataChange(tags=new_tags, expires_at=expiry(expires)))
        version, needs_weights = pushed.version, bool(waits or strict or pushed.alias_refused)
        if needs_weights:
            until = started + (waiting.PENDING_SECONDS if timeout is None else timeout)
            version = waiting.wait_for_weights(registry, version, until)
        if waits and pushed.job_id and not waiting.has_failed(version.verdicts):
            seconds_left = None if timeout is None else max(0.0, started + timeout - time.monotonic())
            job = main.load(".jobs", "wait_for")(registry, pushed.job_id, seconds_left)
            version = registry.version(Ref(name, version.digest))
    if pushed.alias_refused and waiting.is_pending(pushed.version.verdicts) != waiting.is_pending(version.verdicts):
        version, refusal = _promote(version, alias, message)
        pushed = pushed.model_copy(update={"alias_refused": refusal})
    pushed = pushed.model_copy(update={"version": version})
    output.answer(pushed, lambda: _print_pushed(pushed, progress.total_bytes))
    if job is not None:
        main.load(".jobs", "exit_by")(job, None)
    if needs_weights and waiting.is_pending(version.verdicts):
        raise waiting.pending_error(version)
    if pushed.alias_refused or (strict and waiting.has_failed(version.verdicts)):
        output.exit_with(output.REFUSED)


def _describe(registry: Versions, pushed: PushResult, change: VersionMetadataChange) -> PushResult:
    version = registry.describe(f"{pushed.version.name}@{pushed.version.digest}", change)
    return pushed.model_copy(update={"version": version})


def _promote(version: VersionView, alias: str, message: str) -> tuple[VersionView, str]:
    """Move the alias now that the weights are read. Returns the version then, and why the alias did not move."""
    refusal = ""
    with session.registry() as registry:
        generations = {view.alias: view.generation for view in registry.aliases(version.name).items}
        generation = generations.get(alias, 0)
        try:
            registry.promote(version.name, alias, str(version.number), generation=generation, reason=message)
        except Refused as e:
            refusal = e.detail
        return registry.version(f"{version.name}@{version.digest}"), refusal


def _print_left_out(reason: Finding) -> None:
    output.note(f"left out: {reason.location} {reason.message}")


def _print_pushed(pushed: PushResult, sent_bytes: int) -> None:
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
            ("verdicts", versions.verdict_lines(version.verdicts, f"{version.name}@{version.number}")),
            ("aliases", ", ".join(version.aliases)),
            ("tags", " ".join(versions.tag_texts(version.tags))),
            ("expires", output.moment(version.expires_at) if version.expires_at else ""),
            ("job", pushed.job_id),
        ]
    )
    if waiting.has_failed(version.verdicts):
        output.line(output.styled("  The version is stored; its gates stay closed.", "yellow"))
    if pushed.alias_refused:
        output.line(output.styled(f"  The alias did not move: {pushed.alias_refused}", "red"))
