"""`adapter diff`: what changed between two adapters: configuration, facts, files, and with `--values` the numbers.

Invariants
- Without `--values` only configurations, headers and digests are read, never a tensor; and nothing is stored.
- With `--values` both adapters are brought to this machine (cached, verified); torch compares them here (extra worker).
- Left is A, right is B; a side that has no such field shows a dash.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from registry.client import pull
from registry.client.core import Versions
from registry.client.local import folder as folders
from registry.engines import version_facts
from registry.files import CONFIG
from registry.names import Ref

from . import drawing, heatmap, main, output, session, versions
from .heatmap import HeatMap

MODULES_SHOWN = 8
FACTS_LEFT_OUT = frozenset({"engine", "targets", "updates"})
"""Facts that are shown in another way or are for machines."""
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: what it is called, what it says of itself, and the digest of each of its files."""

    label: str
    base: str
    facts: dict[str, Any]
    config: dict[str, Any]
    files: dict[str, str]


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--values", is_flag=True, help="Also compare the updates: cosine per module (extra 'worker').")
@click.option("--plot", type=heatmap.SvgFile(), help="Write a heat map of the cosines (.svg).")
@output.json_option
def diff(a: str, b: str, values: bool, plot: Path | None) -> None:
    """Compare A and B, each a folder or a REF: configuration, facts, targets and files."""
    compare = main.load(".updates", "cosines", "worker", "adapter diff --values") if values or plot else None
    with session.versions() as registry:
        before, after = _side(registry, a), _side(registry, b)
        cosines = _cosines(registry, a, b, compare) if compare else None
    document = {
        "a": before.label,
        "b": after.label,
        "base": _changes({"base": before.base}, {"base": after.base}),
        "config": _changes(before.config, after.config),
        "facts": _changes(_shown(before.facts), _shown(after.facts)),
        "targets": _sets(before.facts.get("targets"), after.facts.get("targets")),
        "files": _changes(before.files, after.files),
        "cosines": cosines,
    }
    if plot is not None:
        title = f"{before.label} and {after.label}: cosine of the updates"
        cells = drawing.grid(cosines or {}, drawing.mean)
        heatmap.write(plot, HeatMap(title, "1 is the same direction, 0 unrelated, -1 opposite", cells, -1.0, 1.0))
    output.answer(document, lambda: _print(document))


def _side(registry: Versions, text: str) -> Side:
    path = Path(text)
    if folders.is_meant(text):
        adapter = folders.read_folder(path)
        written = _written((path / CONFIG).read_bytes()) if CONFIG in adapter.sources else {}
        claims = version_facts.claims(
            adapter.files, lambda file, start, n: adapter.sources[file].read_bytes()[start : start + n]
        )
        files = {f.path: str(f.digest) for f in adapter.files}
        return Side(text, adapter.found.claim.name, {**version_facts.facts_of(adapter.found), **claims}, written, files)
    version = registry.version(Ref.parse(text))
    written = {}
    for link in registry.resolve(f"{version.name}@{version.digest}").files:
        if link.path == CONFIG:
            with registry.read(link.url) as chunks:
                written = _written(b"".join(chunks))
    files = {f.path: str(f.digest) for f in version.files}
    return Side(f"{version.name}@{version.number}", version.base, version.facts, written, files)


def _written(data: bytes) -> dict[str, Any]:
    """The fields of a configuration that was read and judged before, as they are written."""
    fields: dict[str, Any] = json.loads(data)
    return fields


def _cosines(
    registry: Versions, a: str, b: str, compare: Callable[[Path, Path], dict[str, float | None]]
) -> dict[str, float | None]:
    with tempfile.TemporaryDirectory(prefix="adapter-diff-") as scratch:
        here = []
        for side, text in (("a", a), ("b", b)):
            is_here = folders.is_meant(text)
            folder = Path(text) if is_here else Path(scratch) / side
            if not is_here:
                pull.pull(registry, Ref.parse(text), folder)
            here.append(folder)
        return compare(here[0], here[1])


def _shown(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in FACTS_LEFT_OUT}


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Every field whose value differs, by name. A field that one side lacks has no value there."""
    changed = []
    for name in sorted(before.keys() | after.keys()):
        values = {side: fields[name] for side, fields in (("a", before), ("b", after)) if name in fields}
        if values.get("a", _ABSENT) != values.get("b", _ABSENT):
            changed.append({"field": name, **values})
    return changed


def _sets(before: list[str] | None, after: list[str] | None) -> dict[str, list[str]]:
    first, second = set(before or ()), set(after or ())
    return {"added": sorted(second - first), "removed": sorted(first - second)}


def _print(difference: dict[str, Any]) -> None:
    click.echo(f"{output.strong(difference['a'])} → {output.strong(difference['b'])}")
    same = True
    for part in ("base", "config", "facts"):
        for change in difference[part]:
            same = False
            click.echo(f"  {part:<7} {change['field']}: {_value(change, 'a')} → {_value(change, 'b')}")
    for word, modules in difference["targets"].items():
        if modules:
            same = False
            click.echo(f"  targets {word}: {', '.join(modules)}")
    for change in difference["files"]:
        same = False
        word = "added" if "a" not in change else "removed" if "b" not in change else "changed"
        click.echo(f"  files   {change['field']} {word}")
    if same:
        click.echo("  the same configuration, the same facts, the same bytes")
    if difference["cosines"] is None and not same:
        click.echo(output.faint("  how alike the updates themselves are: adapter diff --values"))
    if difference["cosines"] is not None:
        _print_cosines(difference["cosines"])


def _value(change: dict[str, Any], side: str) -> str:
    if side not in change:
        return output.faint("-")
    value = change[side]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return versions.shortened(text)


def _print_cosines(cosines: dict[str, float | None]) -> None:
    numbers = {path: value for path, value in cosines.items() if value is not None}
    if not numbers:
        click.echo("  no module has an update in both that could be compared")
        return
    mean = drawing.mean(list(numbers.values()))
    click.echo(
        f"  updates cosine {mean:+.3f} on average over {output.plural(len(numbers), 'module')}: {_similarity(mean)}"
    )
    cells = drawing.grid(cosines, drawing.mean)
    for word, by in (("layer", "row"), ("kind of module", "column")):
        shown = drawing.lines(cells, lambda _, size: f"{size:+.3f}", by=by, join=drawing.mean)
        if len(shown) > 1:
            click.echo(f"          by {word}")
            for line in drawing.bars(shown, largest=1.0):
                click.echo(f"            {line}")
    click.echo("          least alike")
    for path, value in sorted(numbers.items(), key=lambda item: item[1])[:MODULES_SHOWN]:
        click.echo(f"            {value:+.3f}  {path}")


def _similarity(cosine: float) -> str:
    """For people. Two adapters trained apart have a cosine near 0, one trained on for a little stays near 1."""
    if cosine > 0.999:
        return "the same direction"
    return (
        "much alike"
        if cosine > 0.9
        else "related"
        if cosine > 0.3
        else "hardly related"
        if cosine > -0.3
        else "opposed"
    )
