"""`adapter pull-all`: every adapter of a base."""

from __future__ import annotations

from pathlib import Path

import click

from registry import names
from registry.api.catalog import Resolved
from registry.client import pull
from registry.client.bulk import Result
from registry.names import AdapterName, Ref

from . import output, session
from .bulk import document, leave, print_refused, quiet
from .progress import Bar


@click.command("pull-all")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--base", required=True, help="Base model of the adapters.")
@click.option("--namespace", default="", help="Only adapters in this namespace.")
@click.option("--alias", default="", help="Pull what this alias points at. Default: the newest versions.")
@output.json_option
def pull_all(folder: Path, base: str, namespace: str, alias: str) -> None:
    """Download every adapter of a base into DIR/NAMESPACE/NAME.

    One failure does not stop the others.
    """
    selector = names.selector(alias or names.NEWEST)
    with session.versions() as registry, Bar(base) as bar:
        adapter_names = [
            AdapterName.parse(view.name) for view in pull.adapters_of(registry, base, namespace=namespace, alias=alias)
        ]
        refs = [(Ref(name, selector), folder / name.namespace / name.name) for name in adapter_names]
        results = pull.pull_all(registry, refs, progress=bar, on_result=quiet(bar, _print_pulled))
    fetched = sum(result.answer is not None for result in results)
    summary = f"{output.plural(fetched, 'adapter')} in {folder}, {len(results) - fetched} not"
    output.answer({"items": [document(result, "resolved") for result in results]}, lambda: click.echo(summary))
    leave(results, 0)


def _print_pulled(result: Result[Resolved]) -> None:
    if result.answer is None:
        print_refused(result)
        return
    size = output.size(result.answer.manifest.size_bytes)
    click.echo(f"{output.strong(f'{result.answer.name}@{result.answer.number}')}  {size}  {result.folder}")
