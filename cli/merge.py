"""`adapter merge` (combine, resize, fuse) and `adapter extract`.

With `--into NAME` the registry checks the recipe and a worker runs it. With `--into DIR`, which begins with `.`, `/` or
`~`, a subprocess on this machine runs it and nothing is pushed.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from registry import lazy
from registry.api.bases import BaseView
from registry.api.jobs import JobSubmit
from registry.client.local import folder as folders
from registry.client.local.destination import Destination, require_free
from registry.client.registry import Registry
from registry.client.transfer import pull, push
from registry.errors import Invalid
from registry.jobs import Job, Kind, State
from registry.merging.recipes import MergeOperation, MergeReport, Method, Recipe
from registry.names import AdapterName, Ref
from registry.worker.merge.request import MergeRequest
from registry.worker.model import identify

from . import jobs
from .console import arguments, output, session
from .console.options import Command

WORST_SHOWN = 5


@click.command(cls=Command)
@click.argument("sources", nargs=-1, required=True, metavar="REF[=WEIGHT]...")
@click.option("--into", required=True, metavar="NAME|DIR", help="Adapter or base to create, or a local folder.")
@click.option("--method", type=click.Choice([m.value for m in Method]), default=Method.LINEAR.value, show_default=True,
              help="How to combine the updates.")  # fmt: skip
@click.option(
    "--rank", type=int, default=0, show_default=False, metavar="N", help="Rank of the result; with one REF: resize it."
)
@click.option("--density", type=float, default=1.0, metavar="SHARE",
              help="Share of each update that ties, dare_* and magnitude_prune keep.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, help="Random seed of dare.")
@click.option("--fuse", is_flag=True, help="Write the adapter into its base's weights.")
@click.option("--onto", default="", metavar="BASE", help="Fuse into this base, such as the unquantized original.")
@click.option("--dequantize", is_flag=True, help="Fuse into the unpacked weights of a quantized base.")
@click.option("--base-dir", type=click.Path(file_okay=False, path_type=Path), help="Local folder of the base.")
@click.option("--wait", is_flag=True, help="Wait for the worker.")
@arguments.wait_timeout
def merge(
    sources: tuple[str, ...], into: str, method: str, rank: int, density: float, seed: int, fuse: bool, onto: str,
    dequantize: bool, base_dir: Path | None, wait: bool, timeout: int | None,
) -> None:  # fmt: skip
    """Combine adapters into one, change an adapter's rank, or fuse an adapter into its base.

    With a name as --into, a worker does the work and the result is a new version or base. A target that begins with
    '.', '/' or '~' is a folder: made on this machine (extra 'worker'), from versions or folders, and not pushed.
    """
    refs, weights = zip(*(_weighted(source) for source in sources), strict=True)
    operation = MergeOperation.FUSE if fuse else MergeOperation.COMBINE if len(sources) > 1 else MergeOperation.RESIZE
    if operation is MergeOperation.RESIZE and not rank:
        raise click.UsageError("with one adapter, pass --rank N to resize it or --fuse to write it into its base")
    recipe = Recipe(
        operation=operation, sources=refs,
        weights=weights if operation is MergeOperation.COMBINE or set(weights) != {1.0} else (),
        method=Method.SVD if operation is MergeOperation.RESIZE else Method(method), rank=rank, density=density,
        seed=seed, into=into, onto=onto, dequantize=dequantize,
    )  # fmt: skip
    if is_folder(into):
        report = _run_locally(recipe, Path(into).expanduser(), base_dir)
        output.result({"folder": into, "report": report}, lambda: print_report(into, report))
        return
    kind = Kind.FUSE if fuse else Kind.MERGE
    with session.registry(patient=wait or timeout is not None) as registry:
        job = registry.submit(JobSubmit(kind=kind, payload=recipe.model_dump(mode="json")))
        if wait or timeout is not None:
            job = jobs.wait_for(registry, job.id, timeout)
    output.result(job, lambda: _print_job(job))
    if job.state is State.FAILED or job.state is State.CANCELLED:
        jobs.exit_by(job, None)


@click.command(cls=Command)
@click.argument("tuned", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("base_dir", metavar="BASE_DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rank", type=int, required=True, metavar="N", help="Rank of the adapter.")
@click.option("--into", required=True, metavar="NAME|DIR", help="Adapter to push into; or a folder on this machine.")
@click.option("--base", "base_name", default="", help="Registered name of the base.")
def extract(tuned: Path, base_dir: Path, rank: int, into: str, base_name: str) -> None:
    """Make an adapter from the difference between a fully trained model and its base.

    Norms, biases and embeddings that differ are left out and listed.
    """
    recipe = Recipe(operation=MergeOperation.EXTRACT, rank=rank, method=Method.SVD)
    request = MergeRequest(recipe=recipe, tuned=str(tuned), base=str(base_dir), base_name=base_name, out="")
    if is_folder(into):
        report = _run_into(request, Path(into).expanduser())
        output.result({"folder": into, "report": report}, lambda: print_report(into, report))
        return
    name = AdapterName.parse(into)
    with tempfile.TemporaryDirectory(prefix="adapter-extract-") as scratch, session.registry(patient=True) as registry:
        out = Path(scratch) / "adapter"
        report = _run(request.model_copy(update={"out": str(out)}))
        pushed = push.push_folder(registry, out, name, base=base_name, annotations=recipe.annotations)
    version = f"{pushed.version.name}@{pushed.version.number}"
    output.result({"version": pushed.version, "report": report}, lambda: print_report(version, report))


def is_folder(target: str) -> bool:
    """Whether a target is a local folder. One that exists may be a name, too: nothing is written there by accident."""
    return target.startswith((".", "/", "~"))


def _weighted(text: str) -> tuple[str, float]:
    name, equals, weight = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError:
        raise click.BadParameter(f"{text!r}: the weight after '=' is not a number", param_hint="REF") from None


def _run_locally(recipe: Recipe, out: Path, base_dir: Path | None) -> MergeReport:
    """Run the recipe on local folders. REFs among the sources are pulled first."""
    require_free(out)
    with tempfile.TemporaryDirectory(prefix="adapter-merge-") as scratch:
        if all(folders.is_meant(source) for source in recipe.sources):
            paths, own_base = [str(Path(source).expanduser()) for source in recipe.sources], ""
            base = str(base_dir or "")
        else:
            with session.registry(patient=True) as registry:
                paths, own_base = _pull_sources(registry, recipe.sources, Path(scratch))
                view = registry.base(recipe.onto or own_base)
                base = str(base_dir or view.source)
                if recipe.operation is MergeOperation.FUSE and Path(base).is_dir():
                    _compare_base(registry, view, Path(base))
        request = MergeRequest(recipe=recipe, sources=tuple(paths), base=base, out=str(out))
        if recipe.operation is not MergeOperation.FUSE:
            return _run_into(request, out)
        if not request.base or not Path(request.base).is_dir():
            raise Invalid("BASE_INVALID", "the base's weights are not on this machine", next_step="pass --base-dir DIR")
        report = _run(request)
        return report.onto(recipe.onto, own_base) if recipe.onto and own_base else report


def _compare_base(registry: Registry, view: BaseView, folder: Path) -> None:
    """`Invalid` (BASE_INVALID): the weights in the folder are not those of the registered base."""
    _require_worker()
    if view.spec.fingerprints.exact is None:
        output.note(f"  the base {view.name} was not identified, so the weights in {folder} cannot be compared")
        return
    problem = identify.Inspector(registry, say=output.note, stopping=lambda: False).problem(view, folder)
    if problem:
        next_step = "pass the base's folder, or register that folder (`adapter base add`) and fuse --onto its name"
        raise Invalid("BASE_INVALID", problem, next_step=next_step)


def _pull_sources(registry: Registry, sources: Sequence[str], scratch: Path) -> tuple[list[str], str]:
    paths, bases = [], set()
    pulls = pull.PlannedPulls(registry, [Ref.parse(source) for source in sources if not folders.is_meant(source)])
    for number, source in enumerate(sources):
        if folders.is_meant(source):
            paths.append(str(Path(source).expanduser()))
            continue
        folder = scratch / str(number) / source
        bases.add(pulls.pull(Ref.parse(source), folder).manifest.base.name)
        paths.append(str(folder))
    if len(bases) != 1:
        raise Invalid("RECIPE_INVALID", f"the sources are for different bases: {', '.join(sorted(bases))}")
    return paths, bases.pop()


def _run_into(request: MergeRequest, out: Path) -> MergeReport:
    with Destination(out) as folder:
        return _run(request.model_copy(update={"out": str(folder)}))


def _run(request: MergeRequest) -> MergeReport:
    _require_worker()
    return request.run(lambda text: output.note(f"  {text}"))


def _require_worker() -> None:
    if not identify.is_possible():
        raise lazy.missing_extra("a local merge", "worker", "torch")


def _print_job(job: Job) -> None:
    report: Any = job.result.get("report")
    if job.state is not State.DONE or report is None:
        jobs.print_submitted(job)
        return
    print_report(job.result.get("version") or job.result.get("base") or "", MergeReport.model_validate(report))


def print_report(title: str, report: MergeReport) -> None:
    """Print what a merge made: rank and errors, or what a fuse changed."""
    output.line(f"{output.strong(title)}  {report.operation}{f' ({report.method})' if report.method else ''}")
    if report.operation is MergeOperation.FUSE:
        facts: list[tuple[str, str | list[str]]] = [("changed", output.plural(report.changed_tensors, "tensor")),
                 ("copied", output.size(report.copied_bytes))]  # fmt: skip
    else:
        facts = [("rank", str(report.rank)), ("energy kept", f"{report.energy_kept:.2%}"),
                 ("error", f"{report.relative_error:.3g} of the update")]  # fmt: skip
        if abs(report.error_to_sum - report.relative_error) > 1e-6:
            facts.append(("against the sum", f"{report.error_to_sum:.3g}"))
        worst = [module for module in report.modules[:WORST_SHOWN] if module.relative_error > 1e-6]
        facts.append(("worst", [f"{module.path}: {module.relative_error:.3g}" for module in worst]))
    output.facts([*facts, *(("note", note) for note in report.notes)])
