"""Looking at adapters: `adapter list` and `adapter show`.

Invariants
- `list` walks every page unless `--limit` says otherwise; `--json` gives the items of all of them.
- `list` filters in the registry, by the newest version of each adapter.
- `show` answers one version; what its aliases are comes from the adapter, because an alias is not part of a version.

Example
    $ adapter list --base smollm2
    $ adapter show acme/support:prod
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from cli import heatmap, norms, origin, output, session, versions
from registry.client import convert
from registry.client.api import Registry
from registry.names import Ref
from registry.verdicts import Outcome
from registry.wire import AdapterView, VersionView
from registry.wire.aliases import AliasView

GRADES = ("exact", "other-dtype", "quantised", "descendant")
"""How alike the weights of two bases are, the closest first; each one includes those before it."""


@click.command("list")
@click.option("--namespace", default="", help="Only this namespace.")
@click.option("--base", default="", help="Only adapters of this base.")
@click.option("--grade", type=click.Choice(GRADES), help="With --base: also bases whose weights are so alike.")
@click.option("--method", default="", help="Only this method, such as LORA.")
@click.option("--text", default="", help="Only names that hold this text.")
@click.option("--alias", default="", help="Only adapters that have this alias.")
@click.option("--owner", default="", help="Only adapters that this subject, or token without one, pushed first.")
@click.option("--scheme", default="", help="Only this naming scheme of the tensors, such as peft.")
@click.option(
    "--target", multiple=True, metavar="MODULE", help="Only adapters that touch it, such as q_proj. Repeatable."
)
@click.option("--tag", multiple=True, metavar="KEY[=VALUE]", help="Only adapters with this tag. Repeatable.")
@click.option("--rank-min", type=click.IntRange(0), help="Only ranks from this one on.")
@click.option("--rank-max", type=click.IntRange(0), help="Only ranks up to this one.")
@click.option("--engine", default="", metavar="PROFILE", help="Only what this engine serves; the server must keep it.")
@click.option("--outcome", type=click.Choice([o.value for o in Outcome]), help="With --engine: only this outcome.")
@click.option("--limit", type=click.IntRange(1), help="At most so many.")
@output.json_option
def list_adapters(limit: int | None, **query: Any) -> None:
    """List adapters that you may see, with their newest version."""
    if query["outcome"] and not query["engine"]:
        raise click.UsageError("--outcome needs the --engine whose outcome is meant")
    if query["grade"] and not query["base"]:
        raise click.UsageError("--grade needs the --base whose relatives are meant")
    with session.registry() as registry:
        items = list(_adapters(registry, query | {"target": list(query["target"]), "tag": list(query["tag"])}, limit))
    output.answer({"items": items}, lambda: _print_list(items))


def _adapters(registry: Registry, query: dict[str, Any], limit: int | None) -> Iterator[AdapterView]:
    cursor, left = "", limit
    while True:
        page = registry.adapters(**query, cursor=cursor, limit=min(left, 200) if left else 200)
        yield from page.items
        left = left - len(page.items) if left else None
        cursor = page.next_cursor
        if not cursor or left == 0:
            return


def _print_list(items: list[AdapterView]) -> None:
    if not items:
        click.echo("No adapters. Push one: adapter push DIR NAMESPACE/NAME --base BASE")
        return
    columns = ("name", "newest", "base", "method", "rank", "size", "fits", "acts", "aliases", "updated")
    rows = [
        (
            output.strong(item.name),
            f"@{item.newest}",
            item.base,
            versions.method_name(item.method),
            str(item.rank or "-"),
            output.size(item.size_bytes),
            output.outcome(item.verdicts.get("fits", "")),
            output.outcome(item.verdicts.get("acts", "")),
            " ".join(f"{alias}@{number}" for alias, number in sorted(item.aliases.items()) if alias != "main") or "-",
            output.moment(item.updated_at),
        )
        for item in items
    ]
    output.table(columns, rows, right=frozenset({"rank", "size"}))


@click.command()
@click.argument("ref", type=output.REF)
@click.option("--plot", type=heatmap.PictureFile(), help="Write a heat map of the norms (an .svg or .png file).")
@click.option("--metadata", is_flag=True, help="Only the texts in the weights file, private ones (captions) too.")
@output.json_option
def show(ref: Ref, plot: Path | None, metadata: bool) -> None:
    """Show what a version is, what was found out about it, and which aliases point where."""
    if metadata:
        _show_metadata(ref)
        return
    with session.registry() as registry:
        version = registry.version(ref)
        aliases = registry.aliases(ref.name).items
        found = norms.of_version(registry, version) if plot or not output.as_json() else None
    if plot is not None and found is not None:
        heatmap.write(plot, norms.picture(f"{version.name}@{version.number}", found))
    output.answer(version, lambda: _print_version(version, aliases, norms.told(found)))


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
    known = version.facts
    click.echo(f"{output.strong(f'{version.name}@{version.number}')}  {output.faint(version.digest)}")
    versions.print_warnings(version)
    output.facts(
        [
            ("base", version.base),
            ("method", versions.method_line(known)),
            ("targets", versions.target_line(known)),
            ("", "\n".join(versions.update_lines(known))),
            ("trigger", str(known.get("trigger_words") or "")),
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
