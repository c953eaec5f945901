"""Many adapters at once: `adapter push-all` and `adapter pull-all`.

Invariants
- Every adapter is tried and told of; the command then exits with the code of the first failure.
- What the registry or this machine holds already does not move, and is told as unchanged.

Example
    $ adapter push-all out/ acme --base smollm2
    $ adapter pull-all /srv/adapters --base smollm2 --alias production
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cli import output, provenance, session
from cli.transfer import Bar, failed
from registry import names
from registry.client import bulk
from registry.client.bulk import Result
from registry.errors import Invalid
from registry.manifest import CONFIG, WEIGHTS_ENDINGS
from registry.names import AdapterName, Ref
from registry.wire import Resolved
from registry.wire.push import Pushed


@click.command("push-all")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("namespace")
@click.option("--base", default="", help="The base of all of them. Default: what each configuration names.")
@click.option("--message", "-m", default="", help="What is new in them.")
@click.option("--provenance", "file", default="", help="A file of this name in each folder says what it was made from.")
@click.option("--strict", is_flag=True, help="Exit 6 when a verdict says fail.")
@output.json_option
def push_all(folder: Path, namespace: str, base: str, message: str, file: str, strict: bool) -> None:
    """Push each adapter folder in DIR as NAMESPACE/FOLDER."""
    found = sorted(path for path in folder.iterdir() if path.is_dir() and _is_adapter(path))
    if not found:
        raise Invalid("FOLDER_INVALID", f"{folder} holds no folder with {CONFIG} or a file of weights")
    folders = [(path, f"{namespace}/{path.name}") for path in found]
    with session.versions() as registry, Bar(namespace) as bar:
        results = bulk.push_all(
            registry, folders, base=base, message=message, progress=bar, told=_quiet(bar, _print_pushed),
            declared=lambda one: provenance.of_file(one / file) if file else None,
        )  # fmt: skip
    refused = sum(result.error is not None for result in results)
    fresh = sum(result.answer is not None and result.answer.created for result in results)
    bad = [r for r in results if r.answer and failed(r.answer.version.verdicts)]
    told = f"{output.plural(fresh, 'new version')}, {len(results) - refused - fresh} unchanged, {refused} refused"
    output.answer(
        {"items": [_document(result, "pushed") for result in results]},
        lambda: click.echo(told + (f"; {len(bad)} with a failing verdict" if bad else "")),
    )
    _exit(results, output.REFUSED if strict and bad else 0)


def _is_adapter(folder: Path) -> bool:
    """Whether a folder looks like an adapter of any tool: a configuration, or a file that may hold weights.

    One that cannot be read counts: its own push says what is wrong, and the others go on.
    """
    try:
        return (folder / CONFIG).is_file() or any(path.name.endswith(WEIGHTS_ENDINGS) for path in folder.iterdir())
    except OSError:
        return True


@click.command("pull-all")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--base", required=True, help="The base whose adapters are wanted.")
@click.option("--namespace", default="", help="Only adapters of this namespace.")
@click.option("--alias", default="", help="Those versions that this alias points at. Default: the newest of each.")
@output.json_option
def pull_all(folder: Path, base: str, namespace: str, alias: str) -> None:
    """Bring every adapter of a base into DIR/NAMESPACE/NAME."""
    selector = names.selector(alias or names.NEWEST)
    with session.versions() as registry, Bar(base) as bar:
        found = [AdapterName.parse(view.name) for view in bulk.fleet(registry, base, namespace=namespace, alias=alias)]
        wanted = [(Ref(name, selector), folder / name.namespace / name.name) for name in found]
        results = bulk.pull_all(registry, wanted, progress=bar, told=_quiet(bar, _print_pulled))
    fetched = sum(result.answer is not None for result in results)
    told = f"{output.plural(fetched, 'adapter')} in {folder}, {len(results) - fetched} not"
    output.answer({"items": [_document(result, "resolved") for result in results]}, lambda: click.echo(told))
    _exit(results, 0)


def _quiet(bar: Bar, show: Any) -> Any:
    """Results are told as they come, above the bar; in JSON they are all in the one document."""
    as_json = output.as_json()  # asked here: it looks at the command, which other threads do not have

    def told(result: Result[Any]) -> None:
        if not as_json:
            bar.above(lambda: show(result))

    return told


def _document(result: Result[Any], what: str) -> dict[str, Any]:
    problem = result.error.to_problem() if result.error else None
    answer = output.document(result.answer)
    return {"folder": str(result.folder), "name": result.name, what: answer, "error": problem}


def _print_pushed(result: Result[Pushed]) -> None:
    if result.answer is None:
        _print_refused(result)
        return
    version = result.answer.version
    state = "new" if result.answer.created else "unchanged"
    fits = next((v.outcome for v in reversed(version.verdicts) if v.check == "fits"), "")
    click.echo(f"{output.strong(f'{version.name}@{version.number}')}  {state}  fits {output.outcome(fits)}")


def _print_pulled(result: Result[Resolved]) -> None:
    if result.answer is None:
        _print_refused(result)
        return
    size = output.size(result.answer.manifest.size_bytes)
    click.echo(f"{output.strong(f'{result.answer.name}@{result.answer.number}')}  {size}  {result.folder}")


def _print_refused(result: Result[Any]) -> None:
    detail = result.error.detail if result.error else ""
    click.echo(f"{result.name}  {click.style('refused', fg='red')}  {detail}")


def _exit(results: Sequence[Result[Any]], otherwise: int) -> None:
    errors = [result.error for result in results if result.error]
    click.get_current_context().exit(output.exit_code_of(errors[0]) if errors else otherwise)
