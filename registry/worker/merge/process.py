"""The process that does a merge: folders in, a folder out, one JSON object a line on standard output.

    $ echo '{"recipe": {…}, "sources": ["a", "b"], "out": "c"}' | python -m registry.worker.merge.process
    {"progress": "32 of 210 modules"}
    {"report": {…}}

Invariants
- torch lives here and nowhere above: whoever asks may kill this process at any moment.
- It knows no registry and no token, and has no network where Linux allows that; it reads the folders that it is given
  and writes one. It ends with whoever started it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from registry.engines import facts as engine_facts
from registry.errors import Invalid
from registry.evaluation.verdicts import Outcome, add_up, summarize
from registry.merging import recipes
from registry.merging.recipes import Ingredient, MergeReport, Operation
from registry.worker.merge import combine, extract, fuse
from registry.worker.merge.adapters import Adapter
from registry.worker.merge.request import MergeRequest
from registry.worker.merge.targets import MakeForeign
from registry.worker.sandbox import program

SAY_EVERY_BYTES = 256 * 2**20


def run(
    request: MergeRequest, say: Callable[[str], None] = lambda _said: None, foreign: MakeForeign | None = None
) -> MergeReport:
    """Do what the order says. `Invalid` when it cannot be done. `foreign`: as for `fuse.fuse`."""
    recipe, out = request.recipe, Path(request.out)
    if recipe.operation is Operation.EXTRACT:
        recipes.demand(recipe, [])
        return extract.extract(
            Path(request.tuned), Path(request.base), out, rank=recipe.rank, base_name=request.base_name, progress=say
        )
    sources = [Adapter.open(folder) for folder in request.sources]
    recipes.demand(
        recipe.model_copy(update={"sources": tuple(request.sources)}), [_ingredient(source) for source in sources]
    )
    if recipe.operation is Operation.FUSE:
        say("reading the base's headers")
        return fuse.fuse(
            sources[0], Path(request.base), out, dequantize=recipe.dequantize, foreign=foreign, progress=_counted(say)
        )
    weights = recipe.weights or (1.0,) * len(sources)
    return combine.combine(recipe, list(zip(weights, sources, strict=True)), out, progress=say)


def _ingredient(source: Adapter) -> Ingredient:
    """The source as a recipe's check sees it. The folder says nothing sure of its base: whoever ordered knows.

    `Invalid` (RECIPE_INVALID) for one that is wrong by itself: no push has judged it, if it is a folder here.
    """
    if add_up(source.lora.findings) is Outcome.FAIL:
        raise Invalid("RECIPE_INVALID", f"{source.folder.name}: {summarize(source.lora.findings)}")
    facts = engine_facts.of_lora(source.lora).model_dump(mode="json")
    return Ingredient(name=source.folder.name, digest=str(source.folder), base="", base_fingerprint="", facts=facts)


def _counted(say: Callable[[str], None]) -> Callable[[int], None]:
    written = {"now": 0, "told": 0}

    def count(size: int) -> None:
        written["now"] += size
        if written["now"] - written["told"] >= SAY_EVERY_BYTES:
            written["told"] = written["now"]
            say(f"{written['now'] / 1e9:.1f} GB written")

    return count


def main(foreign: MakeForeign | None = None) -> int:
    """Serve one merge; `foreign` as for `fuse.fuse`."""
    return program.serve(MergeRequest, lambda request, progress: run(request, progress, foreign))


if __name__ == "__main__":
    sys.exit(main())
