"""`adapter export`: for engines that read folders, buckets or Kubernetes objects and do not know the registry."""

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from registry import errors, lazy
from registry.api.serving import DesiredAdapter, DesiredState
from registry.client.transfer import pull
from registry.evaluation.verdicts import Outcome
from registry.serving import desired_state
from registry.serving.export import export as exports
from registry.serving.export import kubernetes as kubernetes_objects
from registry.serving.export.export import Exported, ExportTarget, Item
from registry.serving.export.folder import FolderTarget

from .console import arguments, output, session
from .console.options import Command

_COLORS = {"new": "green", "left out": "yellow", "failed": "red", "removed": "yellow"}


@click.command(cls=Command)
@click.argument("base")
@click.argument("dest", required=False, default="")
@click.option("--alias", default="prod", show_default=True, help="Export what this alias points at.")
@click.option("--namespace", default="", help="Only adapters of this namespace.")
@click.option("--engine", default="", help="Leave out what this engine would not serve as trained.")
@click.option("--model", default="", help="Model name of the engine; exported configurations name it as their base.")
@click.option("--prune", is_flag=True, help="Delete exported versions that are no longer needed.")
@click.option("--pbase", default="", metavar="FOLDER", help="Also write lookup files for LoRAX's source pbase.")
@click.option("--strict", is_flag=True, help="Exit with 6 if something is left out, or unknown for --engine.")
@click.option(
    "--kubernetes", type=click.Choice(kubernetes_objects.KINDS), help="Print Kubernetes objects as JSON instead."
)
@click.option("--location", default="", help="With --kubernetes: location of the export as the pods see it.")
@click.option("--kubernetes-namespace", default="", help="With --kubernetes: namespace of the objects.")
@click.option("--selector", "selectors", multiple=True, metavar="KEY=VALUE",
              help="With modeladapter: labels of the pods.")  # fmt: skip
@click.option("--secret", default="", help="With modeladapter: Secret with the bucket's credentials.")
def export(
    base: str, dest: str, alias: str, namespace: str, engine: str, model: str, prune: bool, pbase: str, strict: bool,
    kubernetes: str | None, location: str, kubernetes_namespace: str, selectors: tuple[str, ...], secret: str,
) -> None:  # fmt: skip
    """Export every adapter of BASE, as the version at --alias, to DEST: a folder or s3://BUCKET/PREFIX.

    For engines that do not know the registry: one folder per version (acme-support-v3), never rewritten, and an
    index. Adapters with a failing check are left out and listed. A bucket needs the extra 'server' and boto3's
    credentials.
    """
    if bool(dest) == bool(kubernetes) or bool(location) != bool(kubernetes):
        raise click.UsageError("pass either DEST, or --kubernetes KIND and --location LOCATION")
    with session.registry(patient=True) as registry:
        desired = desired_state.read(registry, base, alias, engine=engine, namespace=namespace)
        unknown = _unknown(desired, engine)
        if kubernetes:
            labels = arguments.pairs(selectors, "--selector", "KEY=VALUE")
            _print_objects(
                desired,
                lambda entries: kubernetes_objects.make(
                    kubernetes, desired, entries, location,
                    namespace=kubernetes_namespace, model=model, selector=labels or None, secret=secret,
                ),
                strict, unknown,
            )  # fmt: skip
            return
        to_bucket = dest.startswith("s3://")
        if pbase and not to_bucket:
            raise click.UsageError("--pbase needs an export to s3://: LoRAX's source pbase reads only buckets")
        cache = None if to_bucket else pull.USER_CACHE  # bytes for a bucket are not cached
        target = _bucket(dest) if to_bucket else FolderTarget(Path(dest))
        is_text = output.is_text()  # other threads have no click context
        on_item: Callable[[Item], None] = _print_item if is_text else (lambda _item: None)
        exported = exports.run(registry, desired, target, model=model, prune=prune, cache=cache, on_item=on_item)
    if pbase:
        exports.write_lorax_lookups(Path(pbase), exported)
    output.result(exported, lambda: _print_summary(exported))
    _exit(exported, strict, unknown)


def _unknown(desired: DesiredState, engine: str) -> bool:
    """Whether nobody knows of an adapter what the engine does with it; says so."""
    entries = [entry for entry in desired.adapters if entry.engine_outcome is Outcome.UNKNOWN]
    if entries:
        why = next((finding.message for finding in entries[0].findings), "no rule is known")
        output.note(f"unknown for {engine}: {output.plural(len(entries), 'adapter')}, {entries[0].name}: {why}")
    return bool(entries)


def _bucket(dest: str) -> ExportTarget:
    target_class = lazy.load("registry.serving.export.s3:BucketTarget", "server", "adapter export to s3://")
    target: ExportTarget = target_class(dest)
    return target


def _print_objects(
    desired: DesiredState, make: Callable[[Sequence[DesiredAdapter]], kubernetes_objects.Object], strict: bool,
    unknown: bool,
) -> None:  # fmt: skip
    entries, left_out = exports.select_entries(desired)
    click.echo(output.json_text(make(entries)))
    if not desired.adapters:
        output.note(_no_adapters(desired.base, desired.alias))
    for name, reason in left_out.items():
        output.note(f"left out: {name}: {reason}")
    if strict and (left_out or unknown):
        output.exit_with(output.REFUSED)


def _print_item(item: Item) -> None:
    state = output.styled(item.state, *([_COLORS[item.state]] if item.state in _COLORS else []))
    output.line(f"{output.strong(item.served_name)}  {state}  {item.reason or f'{item.name}@{item.number}'}")


def _no_adapters(base: str, alias: str) -> str:
    return f"no adapter of {base!r} that you can see has the alias {alias!r}"


def _print_summary(exported: Exported) -> None:
    if not exported.items:
        output.line(_no_adapters(exported.base, exported.alias))
    states = [item.state for item in exported.items]
    count = states.count("new") + states.count("unchanged")
    counts = [f"{states.count(state)} {state}" for state in ("new", "left out", "failed", "removed") if state in states]
    summary = f"{output.plural(count, 'adapter')} in {exported.location}"
    output.line(f"{summary} ({', '.join(counts)})" if counts else f"{summary}, nothing new")
    next_step = next((item.error.get("next_step") for item in exported.items if item.error), None)
    if next_step:
        output.line(f"Next: {next_step}", err=True)


def _exit(exported: Exported, strict: bool, unknown: bool) -> None:
    failed = next((item.error for item in exported.items if item.error), None)
    left_out = unknown or any(item.state == "left out" for item in exported.items)
    code = output.exit_code_of(errors.from_problem(failed)) if failed else output.REFUSED if strict and left_out else 0
    output.exit_with(code)
