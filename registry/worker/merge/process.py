"""The program that does a merge: folders in, a folder out, one JSON object a line on standard output.

    $ echo '{"recipe": {…}, "sources": ["a", "b"], "out": "c"}' | python -m registry.worker.merge.process
    {"progress": "32 of 210 modules"}
    {"report": {…}}

It imports torch, so its parent may kill it at any moment. It knows no registry, and only folders (sandbox/program.py).
"""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from registry.engines import facts as engine_facts
from registry.errors import Invalid
from registry.evaluation.verdicts import Outcome, add_up, summarize
from registry.merging import recipes
from registry.merging.recipes import Ingredient, MergeOperation, MergeReport
from registry.worker.merge import combine, fuse
from registry.worker.merge.adapters import Adapter
from registry.worker.merge.request import MergeRequest
from registry.worker.merge.targets import MakeMerger
from registry.worker.sandbox import program

REPORT_EVERY_BYTES = 256 * 2**20


def run(
    request: MergeRequest, progress: Callable[[str], None] = lambda _text: None, make_merger: MakeMerger | None = None
) -> MergeReport:
    """Do the merge. `Invalid` when it cannot be done. `make_merger`: as for `fuse.fuse`."""
    recipe, out = request.recipe, Path(request.out)
    if recipe.operation is MergeOperation.EXTRACT:
        recipes.demand(recipe, [])
        tuned, base = Path(request.tuned), Path(request.base)
        return combine.extract(tuned, base, out, rank=recipe.rank, base_name=request.base_name, progress=progress)
    sources = [Adapter.open(folder) for folder in request.sources]
    by_folder = recipe.model_copy(update={"sources": tuple(request.sources)})
    recipes.demand(by_folder, [_ingredient(source) for source in sources])
    if recipe.operation is MergeOperation.FUSE:
        progress("reading the base's headers")
        return fuse.fuse(
            sources[0], Path(request.base), out, dequantize=recipe.dequantize, make_merger=make_merger,
            progress=_count_bytes(progress),
        )  # fmt: skip
    weights = recipe.weights or (1.0,) * len(sources)
    return combine.combine(recipe, list(zip(weights, sources, strict=True)), out, progress=progress)


def _ingredient(source: Adapter) -> Ingredient:
    """The source as a recipe's check sees it; its base is unknown here.

    `Invalid` (RECIPE_INVALID) for a failing adapter: a local folder has not been checked by a push.
    """
    if add_up(source.lora.findings) is Outcome.FAIL:
        raise Invalid("RECIPE_INVALID", f"{source.folder.name}: {summarize(source.lora.findings)}")
    facts = engine_facts.of_lora(source.lora).model_dump(mode="json")
    return Ingredient(name=source.folder.name, digest=str(source.folder), base="", base_fingerprint="", facts=facts)


def _count_bytes(progress: Callable[[str], None]) -> Callable[[int], None]:
    """Report progress every `REPORT_EVERY_BYTES`."""
    total_bytes = reported = 0

    def count(size: int) -> None:
        nonlocal total_bytes, reported
        total_bytes += size
        if total_bytes - reported >= REPORT_EVERY_BYTES:
            reported = total_bytes
            progress(f"{total_bytes / 1e9:.1f} GB written")

    return count


def main(make_merger: MakeMerger | None = None) -> NoReturn:
    """Serve one merge; `make_merger` as for `fuse.fuse`."""
    program.serve(MergeRequest, lambda request, progress: run(request, progress, make_merger))


if __name__ == "__main__":
    main()
