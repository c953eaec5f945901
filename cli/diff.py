"""`adapter diff`: what changed between two adapters: configuration, facts, files, declared inputs, verdicts, updates.

Without `--values`, only configurations, headers and digests are read. With it, both adapters are pulled and torch
compares them on this machine.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from registry import lazy
from registry.adapters import module_grid
from registry.api.catalog import VersionView
from registry.client import waiting
from registry.client.core import Versions
from registry.client.local import folder as folders
from registry.client.local.adapter_folder import read_adapter
from registry.client.transfer import pull
from registry.client.transport import invalid_response
from registry.engines import version_facts
from registry.names import Ref
from registry.versions.files import CONFIG, CONFIG_LIMIT_BYTES

from .console import heatmap, output, session
from .console.heatmap import HeatMap
from .console.options import Command

MODULES_SHOWN = 8
VALUE_WIDTH = 80
SAME_DIRECTION = 0.999
"""Cosine above which two updates have the same direction: without a smaller one, no bars are shown."""
SAME_RATIO = 0.01
"""Spread of the ratios, as a share of their mean, up to which one line stands for all modules."""
FACTS_HIDDEN = frozenset({"engine", "targets", "updates"})
"""Facts that are shown in another form or are for machines."""
_ABSENT = object()
COMPARED = ("base", "config", "facts", "data", "run", "code", "params", "annotations", "tags", "verdicts")
"""Sections of the difference that list changed fields, in their order."""
Changes = dict[str, tuple[float | None, float | None]]
"""Module → cosine and ratio of the norms, as `registry.worker.model.updates.compare` returns them."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two adapters. `fields`: section of `COMPARED` → its fields. `files`: path → digest.

    A folder has no declared inputs, tags and verdicts, so those sections are absent.
    """

    label: str
    facts: dict[str, Any]
    fields: dict[str, dict[str, Any]]
    files: dict[str, str]


@click.command(cls=Command)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--values", is_flag=True, help="Also compare the updates: cosine and norm per module (extra 'worker').")
@click.option("--plot", type=heatmap.SvgFile(), help="Write a heat map of the cosines (.svg).")
def diff(a: str, b: str, values: bool, plot: Path | None) -> None:
    """Compare A and B, each a folder or a REF.

    Compares configuration, facts, targets and files. For two versions also data sets, training run, code, parameters,
    annotations, tags and verdicts.
    """
    compare = None
    if values or plot:
        compare = lazy.load("registry.worker.model.updates:compare", "worker", "adapter diff --values")
    with session.versions() as registry:
        before, after = _side(registry, a), _side(registry, b)
        changes = _compare_updates(registry, a, b, compare) if compare else None
    cosines = None if changes is None else {path: cosine for path, (cosine, _) in changes.items()}
    sections = [name for name in COMPARED if name in before.fields and name in after.fields]
    document: dict[str, Any] = {
        "a": before.label,
        "b": after.label,
        **{name: _changes(before.fields[name], after.fields[name]) for name in sections},
        "targets": _sets(before.facts.get("targets"), after.facts.get("targets")),
        "files": _changes(before.files, after.files),
        "cosines": cosines,
        "norm_ratios": None if changes is None else {path: ratio for path, (_, ratio) in changes.items()},
    }
    if plot is not None:
        title = f"{before.label} and {after.label}: cosine of the updates"
        cells = module_grid.grid(cosines or {}, module_grid.mean)
        heatmap.write(plot, HeatMap(title, "1 is the same direction, 0 unrelated, -1 opposite", cells, -1.0, 1.0))
    output.result(document, lambda: _print(document))


def _side(registry: Versions, text: str) -> Side:
    path = Path(text)
    if folders.is_meant(text):
        adapter = read_adapter(path)
        config = json.loads((path / CONFIG).read_bytes()) if CONFIG in adapter.sources else {}
        claims = version_facts.claims(
            adapter.files, lambda file, start, n: adapter.sources[file].read_bytes()[start : start + n]
        )
        files = {f.path: str(f.digest) for f in adapter.files}
        facts = {**version_facts.facts_of(adapter.contents), **claims}
        fields = {"base": {"base": adapter.contents.claim.name}, "config": config, "facts": _shown(facts)}
        return Side(text, facts, fields, files)
    version = registry.version(Ref.parse(text))
    config = _config_of(registry, version) if any(file.path == CONFIG for file in version.files) else {}
    files = {f.path: str(f.digest) for f in version.files}
    fields = {"base": {"base": version.base}, "config": config, "facts": _shown(version.facts), **_declared(version)}
    return Side(f"{version.name}@{version.number}", version.facts, fields, files)


def _config_of(registry: Versions, version: VersionView) -> Any:
    """The configuration of a version, whose bytes are verified."""
    ref = waiting.ref_of(version)
    with tempfile.TemporaryDirectory(prefix="adapter-diff-") as folder:
        pull.pull(registry, ref, Path(folder) / "version", cache=None, include=[CONFIG])
        with (Path(folder) / "version" / CONFIG).open("rb") as file:
            data = file.read(CONFIG_LIMIT_BYTES + 1)
    try:
        if len(data) <= CONFIG_LIMIT_BYTES:
            return dict(json.loads(data))
    except (ValueError, TypeError, RecursionError):
        pass
    raise invalid_response(f"{CONFIG} of {ref} is not a JSON object of at most {CONFIG_LIMIT_BYTES} bytes")


def _declared(version: VersionView) -> dict[str, dict[str, Any]]:
    """What was declared about a version, its tags, and the outcome of each check."""
    declared = version.provenance
    verdicts = {f"{v.check} {v.profile}".strip() + (" (owner)" if v.by_owner else ""): v for v in version.verdicts}
    return {
        "data": {d.name or d.key: d.key for d in declared.datasets} if declared else {},
        "run": {declared.run.tool: declared.run.id} if declared and declared.run else {},
        "code": {declared.code.repository: declared.code.commit} if declared and declared.code else {},
        "params": dict(declared.parameters) if declared else {},
        "annotations": version.annotations,
        "tags": version.tags,
        "verdicts": {label: verdict.outcome for label, verdict in verdicts.items()},
    }


def _compare_updates(registry: Versions, a: str, b: str, compare: Callable[[Path, Path], Changes]) -> Changes:
    with tempfile.TemporaryDirectory(prefix="adapter-diff-") as scratch:
        local = []
        pulls = pull.PlannedPulls(registry, [Ref.parse(text) for text in (a, b) if not folders.is_meant(text)])
        for side, text in (("a", a), ("b", b)):
            if folders.is_meant(text):
                local.append(Path(text))
            else:
                local.append(Path(scratch) / side)
                pulls.pull(Ref.parse(text), local[-1])
        return compare(local[0], local[1])


def _shown(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in FACTS_HIDDEN}


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
    output.line(f"{output.strong(difference['a'])} → {output.strong(difference['b'])}")
    same = True
    for part in COMPARED:
        for change in difference.get(part, ()):
            same = False
            output.line(f"  {part:<7} {change['field']}: {_value(change, 'a')} → {_value(change, 'b')}")
    for state, modules in difference["targets"].items():
        if modules:
            same = False
            output.line(f"  targets {state}: {', '.join(modules)}")
    for change in difference["files"]:
        same = False
        state = "added" if "a" not in change else "removed" if "b" not in change else "changed"
        output.line(f"  files   {change['field']} {state}")
    if same:
        more = ", declared inputs, tags and verdicts" if "data" in difference else ""
        output.line(f"  same configuration, facts and bytes{more}")
    if difference["cosines"] is None and not same:
        output.line(output.faint("  adapter diff --values compares the updates themselves"))
    if difference["cosines"] is not None:
        _print_cosines(difference["cosines"])
        _print_ratios(difference["norm_ratios"])


def _value(change: dict[str, Any], side: str) -> str:
    if side not in change:
        return output.faint("-")
    value = change[side]
    if isinstance(value, dict):
        value = [f"{name}={item}" for name, item in value.items()]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return (text or "none") if len(text) <= VALUE_WIDTH else text[: VALUE_WIDTH - 1] + "…"


def _print_cosines(cosines: dict[str, float | None]) -> None:
    numbers = {path: value for path, value in cosines.items() if value is not None}
    if not numbers:
        output.line("  no module has a comparable update in both")
        return
    mean = module_grid.mean(list(numbers.values()))
    output.line(
        f"  updates cosine {mean:+.3f} on average over {output.plural(len(numbers), 'module')}: {_similarity(mean)}"
    )
    if min(numbers.values()) > SAME_DIRECTION:
        return
    cells = module_grid.grid(cosines, module_grid.mean)
    for label, by in (("layer", "row"), ("kind of module", "column")):
        means = module_grid.totals(cells, by=by, join=module_grid.mean)
        if len(means) > 1:
            output.line(f"          by {label}")
            for line in heatmap.bars(means, lambda _, mean: f"{mean:+.3f}", largest=1.0):
                output.line(f"            {line}")
    output.line("          least similar")
    for path, value in sorted(numbers.items(), key=lambda item: item[1])[:MODULES_SHOWN]:
        output.line(f"            {value:+.3f}  {path}")


def _print_ratios(ratios: dict[str, float | None]) -> None:
    numbers = {path: value for path, value in ratios.items() if value is not None}
    if not numbers:
        return
    mean = module_grid.mean(list(numbers.values()))
    low, high = min(numbers.values()), max(numbers.values())
    spread = "in every module" if high - low < SAME_RATIO * mean else f"on average, {low:.3g} to {high:.3g}"
    output.line(f"  updates norm × {mean:.3f} {spread}")
    if high - low >= SAME_RATIO * mean:
        for path, value in sorted(numbers.items(), key=lambda item: -abs(item[1] - 1))[:MODULES_SHOWN]:
            output.line(f"            × {value:.3f}  {path}")


def _similarity(cosine: float) -> str:
    """In words. Adapters trained apart have a cosine near 0; one trained on for a few more steps stays near 1."""
    levels = ((SAME_DIRECTION, "the same direction"), (0.9, "very similar"), (0.3, "related"), (-0.3, "hardly related"))
    return next((label for least, label in levels if cosine > least), "opposed")
