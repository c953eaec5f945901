"""`adapter pull` and `pull-all`: download versions into folders, all or nothing. `adapter cat`: prints one file."""

import base64
import glob
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import click

from registry import names
from registry.api.catalog import Resolved
from registry.client.transfer import pull as pulling
from registry.client.transfer.bulk import Result
from registry.errors import Invalid, NotFound
from registry.findings import Finding
from registry.names import AdapterName, Ref
from registry.versions.files import WEIGHTS_ENDINGS

from .console import arguments, output, session
from .console.options import Command
from .console.progress import ProgressLine, end_with_results, result_reporter


@click.command(cls=Command)
@click.argument("ref", type=arguments.REF)
@click.argument("dest", required=False, type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Hash DEST and the cache again; fetch only damaged files.")
@click.option("--include", multiple=True, metavar="PATTERN", help="Only files that match PATTERN (repeatable).")
def pull(ref: Ref, dest: Path | None, verify: bool, include: tuple[str, ...]) -> None:
    """Download the version REF into DEST, verified, all or nothing.

    DEST defaults to a folder with the adapter's name. It is replaced as a whole once the new files are complete;
    .adapter.json in it names the version. Large files share disk blocks with the cache where the file system supports
    it. With --include the folder is partial: it has .adapter.partial.json instead, and a pull without it completes it.
    A version that failed a check is pulled with a warning.
    """
    target = dest or Path(ref.name.name)
    damaged: list[Finding] = []
    with session.versions(patient=True) as registry, ProgressLine(str(ref)) as progress:
        if verify:
            resolved, damaged = pulling.verify(registry, ref, target, progress=progress, include=include)
        else:
            resolved = pulling.pull(registry, ref, target, progress=progress, include=include)

    files = pulling.matching(resolved.files, include)

    def text() -> None:
        output.line(f"{output.strong(f'{resolved.name}@{resolved.number}')}  {output.faint(resolved.digest)}")
        size = output.size(sum(file.size_bytes for file in files))
        count = f"partial: {len(files)} of " if include else ""
        output.line(f"  {count}{output.plural(len(resolved.files), 'file')}, {size}, verified, in {target}")
        for finding in damaged:
            output.line(output.styled(f"  damaged, fetched again: {finding.location} {finding.message}", "yellow"))
        if resolved.yanked:
            output.line(output.styled("  this version is yanked", "red"))

    if resolved.failed_checks:
        message = f"Warning: {resolved.name}@{resolved.number} failed its check: {', '.join(resolved.failed_checks)}"
        output.line(output.styled(message, "yellow"), err=True)
    document: dict[str, object] = {"path": str(target.absolute()), "resolved": resolved}
    document |= {"damaged": damaged} if verify else {}
    output.result(document | ({"partial": [file.path for file in files]} if include else {}), text)


@click.command(cls=Command)
@click.argument("ref", type=arguments.REF)
@click.argument("file")
def cat(ref: Ref, file: str) -> None:
    """Print FILE of the version REF.

    All bytes are verified first. A terminal gets escaped text, a pipe or file the exact bytes; --json has base64.
    """
    pattern, to_terminal = glob.escape(file), sys.stdout.isatty() and not output.is_document()
    next_step = f"adapter cat {ref} {shlex.quote(file)} > FILE"
    binary = Invalid("REQUEST_INVALID", f"{file} is binary and was not printed to the terminal", next_step=next_step)
    if to_terminal and file.endswith(WEIGHTS_ENDINGS):
        raise binary
    with tempfile.TemporaryDirectory(prefix="adapter-cat-") as folder:
        version = Path(folder) / "version"
        with session.versions(patient=True) as registry, ProgressLine(f"{ref} {file}") as progress:
            resolved = pulling.pull(registry, ref, version, cache=None, progress=progress, include=[pattern])
        copy = version / file
        if output.is_document():
            (link,) = pulling.matching(resolved.files, [pattern])
            output.result({**link.model_dump(), "data": base64.b64encode(copy.read_bytes()).decode()}, lambda: None)
        elif to_terminal:
            try:
                lines = copy.read_text("utf-8").removesuffix("\n").split("\n")
            except UnicodeDecodeError:
                raise binary from None
            for line in lines:
                output.line(line.expandtabs())
        else:
            with copy.open("rb") as source:
                shutil.copyfileobj(source, sys.stdout.buffer)


@click.command("pull-all", cls=Command)
@click.argument("base")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--namespace", default="", help="Only adapters in this namespace.")
@click.option("--alias", default="", help="Pull what this alias points at. Default: the newest versions.")
def pull_all(base: str, folder: Path, namespace: str, alias: str) -> None:
    """Download every adapter of BASE into DIR/NAMESPACE/NAME.

    One failure does not stop the others. Exit 4 if there is no such adapter.
    """
    selector = names.selector(alias or names.NEWEST)
    with session.versions(patient=True) as registry, ProgressLine(base) as progress:
        views = pulling.adapters_of(registry, base, namespace=namespace, alias=alias)
        adapters = [AdapterName.parse(view.name) for view in views]
        if not adapters:
            raise NotFound("ADAPTER_UNKNOWN", f"no adapter of the base '{base}' is selected",
                           next_step="`adapter base list` shows the bases, `adapter list` the adapters")  # fmt: skip
        refs = [(Ref(name, selector), folder / name.namespace / name.name) for name in adapters]
        progress.total_items = len(refs)
        results = pulling.pull_all(
            registry, refs, progress=progress, on_result=result_reporter(progress, _print_pulled)
        )
    pulled = sum(result.value is not None for result in results)
    summary = f"{output.plural(pulled, 'adapter')} in {folder}, {len(results) - pulled} failed"
    end_with_results(results, "resolved", summary, 0)


def _print_pulled(result: Result[Resolved]) -> None:
    if result.value is not None:
        size = output.size(result.value.manifest.size_bytes)
        output.line(f"{output.strong(f'{result.value.name}@{result.value.number}')}  {size}  {result.folder}")
