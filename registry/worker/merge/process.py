"""The process that does a merge: folders in, a folder out, one JSON object a line on standard output.

    $ echo '{"recipe": {…}, "sources": ["a", "b"], "out": "c"}' | python -m registry.worker.merge.process
    {"said": "32 of 210 modules"}
    {"report": {…}}

Invariants
- torch lives here and nowhere above: whoever asks may kill this process at any moment.
- It knows no registry and no token, and has no network where Linux allows that; it reads the folders that it is given
  and writes one. It ends with whoever started it.

Example
    >>> do(Order(recipe=recipe, sources=["a"], base="models/tiny", out="fused"))
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from registry.engines import facts as engine_facts
from registry.errors import Invalid, RegistryError
from registry.evaluation.verdicts import Outcome, add_up, summarise
from registry.merging import recipes
from registry.merging.recipes import Ingredient, MergeReport, Operation
from registry.worker.merge import combine, extract, fuse
from registry.worker.merge.adapters import Adapter
from registry.worker.merge.request import Order
from registry.worker.merge.targets import MakeForeign
from registry.worker.sandbox import confine, entry

SAY_EVERY_BYTES = 256 * 2**20
_ENDINGS = (signal.SIGINT, signal.SIGTERM)


def do(
    order: Order, say: Callable[[str], None] = lambda _said: None, foreign: MakeForeign | None = None
) -> MergeReport:
    """Do what the order says. `Invalid` when it cannot be done. `foreign`: as for `fuse.fuse`."""
    recipe, out = order.recipe, Path(order.out)
    if recipe.operation is Operation.EXTRACT:
        recipes.demand(recipe, [])
        return extract.extract(
            Path(order.tuned), Path(order.base), out, rank=recipe.rank, base_name=order.base_name, progress=say
        )
    sources = [Adapter.open(folder) for folder in order.sources]
    recipes.demand(
        recipe.model_copy(update={"sources": tuple(order.sources)}), [_ingredient(source) for source in sources]
    )
    if recipe.operation is Operation.FUSE:
        say("reading the base's headers")
        return fuse.fuse(
            sources[0], Path(order.base), out, dequantise=recipe.dequantise, foreign=foreign, progress=_counted(say)
        )
    weights = recipe.weights or (1.0,) * len(sources)
    return combine.combine(recipe, list(zip(weights, sources, strict=True)), out, progress=say)


def _ingredient(source: Adapter) -> Ingredient:
    """The source as a recipe's check sees it. The folder says nothing sure of its base: whoever ordered knows.

    `Invalid` (RECIPE_INVALID) for one that is wrong by itself: no push has judged it, if it is a folder here.
    """
    if add_up(source.lora.findings) is Outcome.FAIL:
        raise Invalid("RECIPE_INVALID", f"{source.folder.name}: {summarise(source.lora.findings)}")
    facts = engine_facts.of_lora(source.lora).model_dump(mode="json")
    return Ingredient(name=source.folder.name, digest=str(source.folder), base="", base_fingerprint="", facts=facts)


def _counted(say: Callable[[str], None]) -> Callable[[int], None]:
    seen = {"now": 0, "told": 0}

    def count(size: int) -> None:
        seen["now"] += size
        if seen["now"] - seen["told"] >= SAY_EVERY_BYTES:
            seen["told"] = seen["now"]
            say(f"{seen['now'] / 1e9:.1f} GB written")

    return count


def main(foreign: MakeForeign | None = None) -> int:
    """The order from standard input; progress, then the report or the error, on standard output."""

    def write(message: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    entry.begin()
    end_in_order()
    confine.die_with_the_parent(
        signal.SIGTERM
    )  # what was begun may be as large as the base, and nobody else clears it up
    confine.cut_network()
    try:
        found = do(Order.model_validate_json(sys.stdin.read()), lambda said: write({"said": said}), foreign)
    except RegistryError as e:
        write({"problem": e.to_problem()})
        return 1
    except (OSError, ValueError, RuntimeError) as e:
        write({"error": f"{type(e).__name__}: {e}"[:1000]})
        return 1
    write({"report": found.model_dump(mode="json")})
    return 0


def end_in_order() -> None:
    """What was begun is cleared up on the way out, whoever ends this process, and however often.

    A Ctrl-C reaches it and whoever started it, who ends it, too.
    """
    for number in _ENDINGS:
        signal.signal(number, _stop)


def _stop(number: int, _frame: FrameType | None) -> None:
    for again in _ENDINGS:
        signal.signal(again, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
