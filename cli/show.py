"""`adapter show`: a version with its verdicts, aliases, declared inputs and norms."""

import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from registry.adapters import module_grid
from registry.adapters.module_grid import Grid
from registry.api.aliases import AliasView
from registry.api.catalog import AdapterView, VersionView
from registry.client import convert, registries
from registry.client.aliases import Aliases
from registry.errors import Invalid
from registry.evaluation.verdicts import Check
from registry.names import AdapterName, Ref
from registry.versions.files import TRAINER_STATE

from .console import arguments, heatmap, output, session, versions
from .console.heatmap import HeatMap
from .console.options import Command


@click.command(cls=Command)
@click.argument("ref", type=arguments.REF)
@click.option("--norms", "with_norms", is_flag=True, help="Also show the size of the update per layer, as bars.")
@click.option("--plot", type=heatmap.SvgFile(), help="Write a heat map of the norms (.svg).")
@click.option("--metadata", is_flag=True, help="Print only the metadata of the weights file, private texts included.")
@click.option("--answers", is_flag=True, help="Print only how base and adapter begin to answer, by the smoke test.")
def show(ref: Ref, plot: Path | None, with_norms: bool, metadata: bool, answers: bool) -> None:
    """Show a version: aliases, verdicts, tags, facts and declared inputs.

    With --norms, '0.12 x W' is the update's share of the base weight, if the base was identified.
    """
    if metadata or answers:
        (_show_metadata if metadata else _show_answers)(ref)
        return
    needs_norms = bool(plot or (with_norms and output.is_text()))
    with session.registry() if needs_norms else session.opened(Aliases) as registry:
        version = registry.version(ref)
        aliases = registry.aliases(ref.name).items
        described = registry.adapter(ref.name)
        norms = _norms_of(registry, version) if needs_norms else None
        job_id = versions.open_test(registry, version)
    if plot is not None and norms is not None:
        heatmap.write(plot, _norm_map(f"{version.name}@{version.number}", norms))
    output.result(
        version, lambda: _print_version(version, described, aliases, _norm_lines(norms if with_norms else None), job_id)
    )


@click.command("open", cls=Command)
@click.argument("subject", type=arguments.SUBJECT, metavar="NAME|REF")
@click.option("--print", "prints_only", is_flag=True, help="Print the URL and open nothing.")
def open_page(subject: AdapterName | Ref, prints_only: bool) -> None:
    """Open the page of an adapter (NAME) or a version (REF) in a browser."""
    target = registries.target()
    if target.embedded:
        raise Invalid("REQUEST_INVALID", "the embedded registry has no pages", next_step="run `adapter serve`")
    name = subject.name if isinstance(subject, Ref) else subject
    url = f"{target.url}/adapters/{name}"
    if isinstance(subject, Ref):
        with session.versions() as registry:
            url += f"/versions/{registry.version(subject).number}"
    opened = not prints_only and webbrowser.open(url)
    output.result({"url": url, "opened": opened}, lambda: output.line(url))


def _show_metadata(ref: Ref) -> None:
    """Metadata is read from the file itself: the registry keeps no copy of private texts."""
    with session.registry() as registry:
        texts = dict(sorted(convert.read(registry, registry.resolve(ref)).header.metadata.items()))

    def text() -> None:
        if not texts:
            output.line("The weights file has no metadata.")
        output.facts([(key, value.splitlines()) for key, value in texts.items()])

    output.result({"metadata": texts}, text)


def _show_answers(ref: Ref) -> None:
    with session.registry() as registry:
        report = _newest_report(registry, registry.version(ref))
    answers = report.answers if report is not None else ()

    def text() -> None:
        if not answers:
            output.line("No smoke test of this version has recorded answers.")
        for answer in answers:
            output.line(answer.prompt)
            output.facts([("base", answer.base or "–"), ("adapter", answer.adapter or "–")])

    output.result({"answers": answers}, text)


def _newest_report(registry: Any, version: VersionView) -> Any:
    """The report of the newest smoke test, if there is one."""
    reports = [verdict.report for verdict in version.verdicts if verdict.check is Check.SMOKE and verdict.report]
    return registry.report(Ref(AdapterName.parse(version.name), version.digest), reports[-1]) if reports else None


def _print_version(
    version: VersionView, adapter: AdapterView, aliases: list[AliasView], norms: list[str], job_id: str
) -> None:
    facts = version.facts
    output.line(f"{output.strong(f'{version.name}@{version.number}')}  {output.faint(version.digest)}")
    versions.print_warnings(version)
    output.facts(
        [
            ("aliases", _alias_lines(aliases, version.number) or output.faint("none")),
            ("verdicts", versions.verdict_lines(version.verdicts, f"{version.name}@{version.number}", job_id)),
            *((f"adapter {label}", lines) for label, lines in versions.metadata_rows(adapter)),
            *versions.metadata_rows(version),
            ("base", version.base),
            ("served as", version.served_name),
            ("method", versions.method_line(facts)),
            ("targets", versions.target_line(facts)),
            ("", versions.update_lines(facts)),
            ("trigger", str(facts.get("trigger_words") or "")),
            ("size", f"{output.size(version.size_bytes)} in {output.plural(len(version.files), 'file')}"),
            ("pushed", f"{output.moment(version.created_at)} by {version.created_by}"),
            ("signed by", ", ".join(version.signed_by)),
            ("expires", output.moment(version.expires_at) if version.expires_at else ""),
            ("message", version.message.splitlines()),
            ("parents", [f"{p.relation} {p.name or ''} {output.faint(p.digest)}" for p in version.parents]),
            *_input_rows(version),
            ("annotations", [f"{key}={value}" for key, value in sorted(version.annotations.items())]),
            ("norms", norms),
            ("files", [f"{f.path}  {output.faint(output.size(f.size_bytes))}" for f in version.files]),
        ]
    )


def _alias_lines(aliases: list[AliasView], number: int) -> list[str]:
    lines = []
    width = max((len(a.alias) for a in aliases), default=0)
    for alias in aliases:
        arrow = f"{alias.alias:<{width}} → @{alias.number}"
        if alias.number == number:
            arrow = output.strong(arrow)
        since = output.faint(f"since {output.moment(alias.moved_at)} by {alias.moved_by}")
        lines.append(f"{arrow}  {since}  {alias.reason}".rstrip())
    return lines


COLUMNS_SHOWN = 24


@dataclass(frozen=True, slots=True)
class Norms:
    """Module → |scale · BA|, and module → |W| where it is known. `hint`: how to get the missing weights."""

    base: str
    updates: dict[str, float | None]
    weights: dict[str, float]
    hint: str = ""


def _norms_of(registry: Any, version: VersionView) -> Norms:
    """What the registry measured after the push; else what the newest report of a worker has."""
    ref = Ref(AdapterName.parse(version.name), version.digest)
    measured = registry.norms(ref)
    if measured.modules:
        weights = {path: norms.weight for path, norms in measured.modules.items() if norms.weight is not None}
        hint = "" if measured.base_measured else f"adapter base identify {version.base} DIR"
        return Norms(version.base, {path: norms.update for path, norms in measured.modules.items()}, weights, hint)
    report = _newest_report(registry, version)
    rows = report.module_norms if report is not None else {}
    weights = {path: row[3] for path, row in rows.items() if row[3] is not None}
    return Norms(version.base, {path: row[2] for path, row in rows.items()}, weights)


def _norm_lines(norms: Norms | None) -> list[str]:
    """A bar for each layer, then one for each kind of module."""
    if norms is None or not any(norms.updates.values()):
        return []
    grid = module_grid.grid(norms.updates)
    compared = {path: size for path, size in norms.updates.items() if path in norms.weights}
    shares = (module_grid.grid(compared), module_grid.grid({path: norms.weights[path] for path in compared}))
    heading = "of the update, scale · BA, by layer" + ("; × W is its share of the base's weight" if compared else "")
    lines = [heading, *_bars(grid, shares, "row")]
    if 1 < len(grid.columns) <= COLUMNS_SHOWN:
        lines += ["by kind of module", *_bars(grid, shares, "column")]
    if norms.hint:
        lines.append(output.faint(f"{norms.base} was not identified, so its own weights are not known: {norms.hint}"))
    return lines


def _bars(grid: Grid, shares: tuple[Grid, Grid], by: str) -> list[str]:
    updates, weights = (dict(module_grid.totals(side, by=by)) for side in shares)

    def suffix(label: str, size: float) -> str:
        weight = weights.get(label)
        return f"{size:<7.3g}  {updates[label] / weight:.2g} × W" if weight else f"{size:.3g}"

    return heatmap.bars(module_grid.totals(grid, by=by), suffix)


def _norm_map(name: str, norms: Norms) -> HeatMap:
    """Shares of the base's weights if those are known, else norms."""
    updates = norms.updates
    shares = {path: size / norms.weights[path] for path, size in updates.items() if size and norms.weights.get(path)}
    if shares:
        cells = module_grid.grid(shares, module_grid.mean)
        title, note = f"{name}: |scale · BA| / |W| of each module", f"W is the weight of {norms.base}"
    else:
        cells = module_grid.grid(updates)
        title, note = f"{name}: norm of each module's update", "|scale · BA|"
    return HeatMap(title, note, cells, 0.0, max(cells.cells.values(), default=0.0))


PARAMETERS_SHOWN = 12


def _input_rows(version: VersionView) -> list[tuple[str, list[str]]]:
    """What was declared at the push, and what README and trainer log claim, which is marked with its file."""
    declared, claims = version.provenance, version.facts.get("card") or {}
    data = [f"(its README) {name}" for name in claims.get("datasets", [])]
    rows = [("data", data)]
    if declared is not None:
        for dataset in declared.datasets:
            source = " ".join(part for part in (dataset.uri, dataset.revision, dataset.split, dataset.digest) if part)
            data.insert(0, f"{dataset.name}  {output.faint(source)}" if dataset.name else source)
        parameters = [f"{name}={value}" for name, value in sorted(declared.parameters.items())]
        if more := len(parameters) - PARAMETERS_SHOWN:
            parameters[PARAMETERS_SHOWN:] = [f"and {more} more (--json has all)"] if more > 0 else []
        run, code = declared.run, declared.code
        rows += [
            (
                "run",
                [f"{run.tool} {run.id}  {output.faint(run.url)}" if run.url else f"{run.tool} {run.id}"] if run else [],
            ),
            ("code", [f"{code.repository}  {output.faint(code.commit)}"] if code else []),
            ("parameters", parameters),
        ]
    bases = [name for name in claims.get("bases", []) if name.rpartition("/")[2] != version.base.rpartition("/")[2]]
    rows.append(("claims", [f"to be trained on {name} (its README)" for name in bases]))
    tools = {"peft": version.facts.get("peft_version") or "", **claims.get("tools", {})}
    if declared is not None or claims:
        rows.append(("tools", [", ".join(f"{name} {number}" for name, number in sorted(tools.items()) if number)]))
    rows.append(("training", _training(version.facts.get("trainer") or {})))
    return rows


def _training(facts: dict[str, Any]) -> list[str]:
    """`60 of 100 steps, 3 epochs, batches of 8; loss 2.31 → 0.87, evaluation loss 0.91; best 0.85 at step 40`."""
    planned = f" of {facts['planned_steps']}" if facts.get("planned_steps", 0) > 0 else ""
    progress = [
        f"{facts['steps']}{planned} steps" if "steps" in facts else "",
        f"{facts['epochs']:g} epoch{'s' * (facts['epochs'] != 1)}" if "epochs" in facts else "",
        f"batches of {facts['batch_size']}" if "batch_size" in facts else "",
        f"{output.amount(facts['tokens'])} tokens" if facts.get("tokens") else "",
    ]
    losses = facts.get("losses") or []
    ends = [f"{loss:.4g}" for _, loss in (losses[0], losses[-1])] if len(losses) > 1 else []
    results = [
        f"loss {' → '.join(ends)}" if ends else "",
        f"evaluation loss {facts['eval_loss']:.4g}" if "eval_loss" in facts else "",
    ]
    best = f"best {facts['best_metric']:.4g}" if "best_metric" in facts else ""
    best += f" at step {facts['best_step']}" if best and "best_step" in facts else ""
    parts = [", ".join(part for part in group if part) for group in (progress, results, [best])]
    line = "; ".join(part for part in parts if part)
    return [f"(its {TRAINER_STATE}) {line}"] if line else []
