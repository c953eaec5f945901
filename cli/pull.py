"""`adapter pull`: downloads a version into a folder, all or nothing."""

from __future__ import annotations

from pathlib import Path

import click

from registry.client import pull as pulling
from registry.findings import Finding
from registry.names import Ref

from . import arguments, output, session
from .progress import ProgressLine


@click.command()
@click.argument("ref", type=arguments.REF)
@click.argument("dest", required=False, type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Hash DEST and the cache again; fetch only damaged files.")
def pull(ref: Ref, dest: Path | None, verify: bool) -> None:
    """Download the version REF into DEST, verified, all or nothing.

    DEST defaults to a folder with the adapter's name. It is replaced as a whole once the new files are complete;
    .adapter.json in it names the version. Large files share disk blocks with the cache where the file system supports
    it.

    \b
    adapter pull acme/support:prod /srv/adapters/support
    """
    target = dest or Path(ref.name.name)
    damaged: list[Finding] = []
    with session.versions() as registry, ProgressLine(str(ref)) as progress:
        if verify:
            resolved, damaged = pulling.verify(registry, ref, target, progress=progress)
        else:
            resolved = pulling.pull(registry, ref, target, progress=progress)

    def text() -> None:
        output.line(f"{output.strong(f'{resolved.name}@{resolved.number}')}  {output.faint(resolved.digest)}")
        size = output.size(resolved.manifest.size_bytes)
        output.line(f"  {output.plural(len(resolved.files), 'file')}, {size}, verified, in {target}")
        for finding in damaged:
            output.line(output.styled(f"  damaged, fetched again: {finding.location} {finding.message}", "yellow"))
        if resolved.yanked:
            output.line(output.styled("  this version is yanked", "red"))

    answer = {"path": str(target.absolute()), "resolved": resolved}
    output.answer(answer | ({"damaged": damaged} if verify else {}), text)
