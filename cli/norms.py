"""The norms of a version's updates, for people: bars by layer and by kind of module, beside the base's own weights.

Invariants
- What the registry measured at the push is preferred; else the newest report of a worker has them.
- `× W` stands only where the norms of the base's weights are known; where they are not, it is said how to get them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from registry.api.catalog import VersionView
from registry.client.registry import Registry
from registry.evaluation.verdicts import Check
from registry.names import AdapterName, Ref

from . import drawing, output
from .drawing import Grid
from .heatmap import HeatMap

COLUMNS_SHOWN = 24


@dataclass(frozen=True, slots=True)
class Sizes:
    """Module → |scale · BA|, and module → |W| of those whose weight is known.

    `hint` says how to get the weights, where nobody has read them yet.
    """

    base: str
    updates: dict[str, float | None]
    weights: dict[str, float]
    hint: str = ""


def of_version(registry: Registry, version: VersionView) -> Sizes:
    ref = Ref(AdapterName.parse(version.name), version.digest)
    norms = registry.norms(ref)
    modules = norms.modules
    if modules:
        weights = {path: one.weight for path, one in modules.items() if one.weight is not None}
        hint = "" if norms.base_measured else f"adapter base identify {version.base} DIR"
        return Sizes(version.base, {path: one.update for path, one in modules.items()}, weights, hint)
    reports = [v.report for v in version.verdicts if v.check is Check.SMOKE and v.report]
    if not reports:
        return Sizes(version.base, {}, {})
    measured = dict(registry.report(ref, reports[-1]).measurements.get("module_norms") or {})
    rows = {str(path): row for path, row in measured.items() if isinstance(row, list)}
    return Sizes(version.base, _numbers(rows, 2), {p: n for p, n in _numbers(rows, 3).items() if n is not None})


def _numbers(rows: Mapping[str, list[object]], at: int) -> dict[str, float | None]:
    """The number at this place of each row: |A|, |B|, |scale · BA|, |W|."""
    numbers = {path: row[at] if len(row) > at else None for path, row in rows.items()}
    return {path: float(n) if isinstance(n, int | float) else None for path, n in numbers.items()}


def told(sizes: Sizes | None) -> list[str]:
    """Lines: a bar for each layer, then one for each kind of module."""
    if sizes is None or not any(sizes.updates.values()):
        return []
    updates = drawing.grid(sizes.updates)
    beside = {path: size for path, size in sizes.updates.items() if path in sizes.weights}
    shares = (drawing.grid(beside), drawing.grid({path: sizes.weights[path] for path in beside}))
    heading = "of the update, scale · BA, by layer" + ("; × W is its share of the base's weight" if beside else "")
    lines = [heading, *_bars(updates, shares, "row")]
    if 1 < len(updates.columns) <= COLUMNS_SHOWN:
        lines += ["by kind of module", *_bars(updates, shares, "column")]
    if sizes.hint:
        lines.append(output.faint(f"{sizes.base} was not identified, so its own weights are not known: {sizes.hint}"))
    return lines


def _bars(updates: Grid, shares: tuple[Grid, Grid], by: str) -> list[str]:
    over, under = ({line.label: line.size for line in _lines(one, by)} for one in shares)

    def behind(label: str, size: float) -> str:
        weight = under.get(label)
        return f"{size:<7.3g}  {over[label] / weight:.2g} × W" if weight else f"{size:.3g}"

    return drawing.bars(drawing.lines(updates, behind, by=by))


def _lines(grid: Grid, by: str) -> list[drawing.Line]:
    return drawing.lines(grid, lambda _label, _size: "", by=by)


def picture(name: str, sizes: Sizes) -> HeatMap:
    """Shares of the base's weights where those are known, else norms."""
    updates = sizes.updates
    shares = {path: size / sizes.weights[path] for path, size in updates.items() if size and sizes.weights.get(path)}
    if shares:
        cells = drawing.grid(shares, drawing.mean)
        title, note = f"{name}: |scale · BA| / |W| of each module", f"W is the weight of {sizes.base}"
    else:
        cells = drawing.grid(updates)
        title, note = f"{name}: norm of each module's update", "|scale · BA|"
    return HeatMap(title, note, cells, 0.0, max(cells.cells.values(), default=0.0))
