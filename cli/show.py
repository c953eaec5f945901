"""Looking at one version: `adapter show`.

Invariants
- It answers one version; what its aliases are comes from the adapter, because an alias is not part of a version.
"""

from __future__ import annotations

from pathlib import Path

import click

from registry.api.aliases import AliasView
from registry.api.catalog import VersionView
from registry.client import convert
from registry.names import Ref

from . import heatmap, norms, origin, output, session, versions


@click.command()
@click.argument("ref", type=output.REF)
@click.option("--plot", type=heatmap.SvgFile(), help="Write a heat map of the norms (.svg).")
@click.option("--metadata", is_flag=True, help="Print only the metadata of the weights file, private texts included.")
@output.json_option
def show(ref: Ref, plot: Path | None, metadata: bool) -> None:
    """Show a version: facts, verdicts, aliases and the size of its update per layer.

    '0.12 x W' is the update's share of the base weight, if the base was identified.
    """
    if metadata:
        _show_metadata(ref)
        return
    with session.registry() as registry:
        version = registry.version(ref)
        aliases = registry.aliases(ref.name).items
        sizes = norms.of_version(registry, version) if plot or not output.as_json() else None
    if plot is not None and sizes is not None:
        heatmap.write(plot, norms.picture(f"{version.name}@{version.number}", sizes))
    output.answer(version, lambda: _print_version(version, aliases, norms.told(sizes)))


def _show_metadata(ref: Ref) -> None:
    """What the trainer's tools wrote into the file, read from it now: the registry keeps no copy of private texts."""
    with session.registry() as registry:
        texts = dict(sorted(convert.read(registry, registry.resolve(ref)).header.metadata.items()))

    def text() -> None:
        if not texts:
            click.echo("The weights file has no metadata.")
        output.facts([(output.plain(key), output.plain(value)) for key, value in texts.items()])

    output.answer({"metadata": texts}, text)


def _print_version(version: VersionView, aliases: list[AliasView], sizes: list[str]) -> None:
    facts = version.facts
    click.echo(f"{output.strong(f'{version.name}@{version.number}')}  {output.faint(version.digest)}")
    versions.print_warnings(version)
    output.facts(
        [
            ("base", version.base),
            ("method", versions.method_line(facts)),
            ("targets", versions.target_line(facts)),
            ("", "\n".join(versions.update_lines(facts))),
            ("trigger", str(facts.get("trigger_words") or "")),
            ("size", f"{output.size(version.size_bytes)} in {output.plural(len(version.files), 'file')}"),
            ("pushed", f"{output.moment(version.created_at)} by {output.one_line(version.created_by)}"),
            ("message", output.plain(version.message)),
            ("parents", "\n".join(f"{p.relation} {p.name or ''} {output.faint(p.digest)}" for p in version.parents)),
            *origin.lines(version),
            ("verdicts", "\n".join(versions.verdict_lines(version.verdicts, f"{version.name}@{version.number}"))),
            ("norms", "\n".join(sizes)),
            ("aliases", "\n".join(_alias_lines(aliases, version.number)) or output.faint("none")),
            ("files", "\n".join(f"{f.path}  {output.faint(output.size(f.size_bytes))}" for f in version.files)),
        ]
    )


def _alias_lines(aliases: list[AliasView], shown: int) -> list[str]:
    lines = []
    width = max((len(a.alias) for a in aliases), default=0)
    for alias in aliases:
        arrow = f"{alias.alias:<{width}} → @{alias.number}"
        if alias.number == shown:
            arrow = output.strong(arrow)
        since = output.faint(f"since {output.moment(alias.moved_at)} by {output.one_line(alias.moved_by)}")
        lines.append(f"{arrow}  {since}  {output.one_line(alias.reason)}".rstrip())
    return lines
