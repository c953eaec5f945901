"""`Recipe`: how new weights are made from known ones, checked before any work is done.

    combine   adapters of one base → adapter        a weighted sum, or what a method makes of the updates
    resize    adapter → adapter of another rank     the best one of that rank
    fuse      adapter + base → base                 the update is written into the weights
    extract   tuned base - base → adapter           the best low-rank difference

The same recipe on the same versions gives the same weights, also with a random method. Only plain low-rank adapters are
combined: nothing else that an adapter changes has a weighted sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Any

from pydantic import Field, ValidationError

from registry.adapters import methods
from registry.adapters.peft import initializations
from registry.errors import Invalid
from registry.findings import Finding
from registry.model import FrozenModel
from registry.validation import first_problem

RANK_LIMIT = 4096
WEIGHT_LIMIT = 1000.0
SOURCES_LIMIT = 32
MODULES_SAID = 1000
"""Of how many modules, the worst, a report tells: a mixture of experts has tens of thousands, a job's result 1 MiB."""
ANNOTATION = "recipe"
"""The annotation of a manifest that keeps how its weights were made."""
_error, _warning = partial(Finding.of, "error"), partial(Finding.of, "warning")


class MergeOperation(StrEnum):
    COMBINE = "combine"
    RESIZE = "resize"
    FUSE = "fuse"
    EXTRACT = "extract"


class Method(StrEnum):
    """How updates become one. `linear` is the true weighted sum of the updates, never of A and B apart."""

    LINEAR = "linear"
    CAT = "cat"
    SVD = "svd"
    TIES = "ties"
    DARE_LINEAR = "dare_linear"
    DARE_TIES = "dare_ties"
    MAGNITUDE_PRUNE = "magnitude_prune"


PRUNING = frozenset({Method.TIES, Method.DARE_LINEAR, Method.DARE_TIES, Method.MAGNITUDE_PRUNE})
"""Methods that keep a share of each update's values (`density`); their result has full rank before it is cut."""


class Recipe(FrozenModel):
    """`rank` 0: the method's own (linear, cat: whatever holds the sum exactly; others: the largest of the sources).

    `into`: the adapter to push to, or for `fuse` the name of the new base. `onto`: the base to fuse into where it is
    not the adapter's own. `dequantize`: a packed base is unpacked first.
    """

    operation: MergeOperation
    sources: tuple[str, ...] = Field(default=(), max_length=SOURCES_LIMIT)
    weights: tuple[float, ...] = Field(default=(), max_length=SOURCES_LIMIT)
    method: Method = Method.LINEAR
    rank: int = 0
    density: float = 1.0
    seed: int = Field(default=0, ge=0, lt=2**63)
    into: str = Field(default="", max_length=300)
    onto: str = Field(default="", max_length=300)
    dequantize: bool = False

    @classmethod
    def read(cls, payload: Mapping[str, Any]) -> Recipe:
        """`Invalid` (REQUEST_INVALID) names the field that is unknown or of the wrong kind."""
        try:
            return cls.model_validate(payload)
        except ValidationError as e:
            raise Invalid("REQUEST_INVALID", "payload: {}: {}".format(*first_problem(e, "recipe"))) from e

    @property
    def annotations(self) -> dict[str, str]:
        """What the manifest of the result keeps: the recipe without its target, as canonical JSON."""
        return {ANNOTATION: self.model_dump_json(exclude={"into"}, exclude_defaults=True)}


class ModuleLoss(FrozenModel):
    """What became of one module. Errors are relative: ‖result - wanted‖ / ‖wanted‖.

    `relative_error` is against what the method wants, `error_to_sum` against the exact weighted sum.
    """

    path: str
    rank: int
    energy_kept: float
    relative_error: float
    error_to_sum: float = 0.0


class MergeReport(FrozenModel):
    """What a merge made, and what it lost, in all and by module (the worst first, at most `MODULES_SAID`)."""

    operation: MergeOperation
    method: str = ""
    rank: int = 0
    energy_kept: float = 1.0
    relative_error: float = 0.0
    error_to_sum: float = 0.0
    modules: tuple[ModuleLoss, ...] = ()
    changed_tensors: int = 0
    copied_bytes: int = 0
    notes: tuple[str, ...] = ()

    def onto(self, base: str, own: str) -> MergeReport:
        """The same, saying that `base` is not the one that the adapter was trained on."""
        note = f"the adapter was trained on {own}; it is fused into {base}, which is not what was trained"
        return self.model_copy(update={"notes": (*self.notes, note)})


class Ingredient(FrozenModel):
    """A source as its rows tell of it. `facts` are those that engines evaluate by (registry/engines/facts.py)."""

    name: str
    digest: str
    base: str
    base_fingerprint: str
    facts: dict[str, Any]
    compat: str = ""
    is_finite: bool = True


_UNSUMMABLE: tuple[tuple[str, str, str], ...] = (
    ("use_dora", "recipe.dora", "is DoRA: a magnitude and a direction have no weighted sum; fuse it instead"),
    ("saved_modules", "recipe.whole_tensors", "replaces whole modules of the base, which have no weighted sum"),
    ("bias_tensors", "recipe.whole_tensors", "replaces biases of the base, which have no weighted sum"),
    ("lora_bias_tensors", "recipe.whole_tensors", "has trained biases beside its factors: no low-rank update"),
    ("trained_tokens", "recipe.whole_tensors", "replaces rows of the embedding, which have no weighted sum"),
)
_UNMERGEABLE: tuple[tuple[str, str, str], ...] = (
    ("invocation_tokens", "recipe.not_mergeable", "is an aLoRA: it acts only after its invocation tokens"),
    ("qalora", "recipe.not_mergeable", "is QA-LoRA, which pools the inputs: no update of the weights equals it"),
    ("bdlora", "recipe.not_mergeable", "is BD-LoRA, whose factors are blocks of a larger matrix"),
)


def check(recipe: Recipe, ingredients: Sequence[Ingredient]) -> list[Finding]:
    """Everything that speaks against this recipe, before any weight is read. No error: it can be tried."""
    findings = list(_numbers(recipe))
    if len(ingredients) != len(recipe.sources):
        findings.append(_error("recipe.sources", "sources", f"{len(ingredients)} of {len(recipe.sources)} are known"))
    for source in ingredients:
        findings += [_error(code, source.name, f"{source.name} {words}") for code, words in _source(recipe, source)]
    bases = {(source.base, source.base_fingerprint) for source in ingredients}
    if len(bases) > 1:
        names = ", ".join(sorted({source.base for source in ingredients}))
        findings.append(_error("recipe.bases_differ", "sources", f"the sources are for different bases: {names}"))
    digests = [source.digest for source in ingredients]
    if recipe.operation is MergeOperation.COMBINE and len(set(digests)) < len(digests):
        findings.append(_error("recipe.source_duplicate", "sources", "one version is named twice; add its weights up"))
    if recipe.operation is MergeOperation.COMBINE:
        if len({bool(source.facts.get("conv_lora")) for source in ingredients}) > 1:
            findings.append(_warning("recipe.kinds_differ", "sources", "only some of the sources change convolutions"))
        total = sum(int(source.facts.get("max_rank") or 0) for source in ingredients)
        if recipe.method in (Method.LINEAR, Method.CAT) and not recipe.rank and total > RANK_LIMIT:
            message = f"the exact sum has rank {total}, over {RANK_LIMIT}; pass a smaller one with --rank"
            findings.append(_error("recipe.rank_invalid", "rank", message))
    return findings


def demand(recipe: Recipe, ingredients: Sequence[Ingredient]) -> None:
    """`Invalid` (RECIPE_INVALID) with every reason if the recipe cannot work."""
    wrong = [finding for finding in check(recipe, ingredients) if finding.severity == "error"]
    if wrong:
        more = f" (and {len(wrong) - 1} more findings)" if wrong[1:] else ""
        location = "" if wrong[0].message.startswith(wrong[0].location) else f"{wrong[0].location}: "
        raise Invalid("RECIPE_INVALID", f"{location}{wrong[0].message}{more}", findings=wrong)


def on_its_grid(quantization: str) -> Invalid:
    """Why a packed base is never fused onto its own grid."""
    return Invalid(
        "RECIPE_INVALID", f"the base is packed ({quantization}): on its own grid the update would be rounded away",
        next_step="fuse into the unpacked weights (--dequantize), or into the original ones (--onto BASE)",
    )  # fmt: skip


def _numbers(recipe: Recipe) -> Iterator[Finding]:
    several, operation = recipe.operation is MergeOperation.COMBINE, recipe.operation
    if several and len(recipe.sources) < 2:
        yield _error("recipe.sources", "sources", "combining takes at least two adapters; `--rank` alone resizes one")
    if operation in (MergeOperation.RESIZE, MergeOperation.FUSE) and len(recipe.sources) != 1:
        yield _error("recipe.sources", "sources", f"{operation} takes one adapter, not {len(recipe.sources)}")
    if recipe.weights and len(recipe.weights) != len(recipe.sources):
        message = f"{len(recipe.weights)} weights for {len(recipe.sources)} sources"
        yield _error("recipe.weight_invalid", "weights", message)
    if not several and any(weight != 1 for weight in recipe.weights):
        message = f"a weight belongs to a sum of several; {operation} takes the adapter as it was trained"
        yield _error("recipe.weight_invalid", "weights", message)
    for weight in recipe.weights:
        if not math.isfinite(weight) or abs(weight) > WEIGHT_LIMIT or weight == 0:
            rule = f"a weight is a number other than 0, at most {WEIGHT_LIMIT:g} in size, not {weight:g}"
            yield _error("recipe.weight_invalid", "weights", rule)
    lowest = 1 if operation in (MergeOperation.RESIZE, MergeOperation.EXTRACT) else 0
    if not lowest <= recipe.rank <= RANK_LIMIT:
        yield _error("recipe.rank_invalid", "rank", f"a rank is a number from 1 to {RANK_LIMIT}, not {recipe.rank}")
    if not 0 < recipe.density <= 1:
        yield _error("recipe.density_invalid", "density", f"a density is over 0 and at most 1, not {recipe.density:g}")
    if recipe.density != 1 and (not several or recipe.method not in PRUNING):
        yield _error("recipe.density_invalid", "density", f"{recipe.method} leaves nothing out: it takes no density")
    if operation is MergeOperation.FUSE and recipe.rank:
        yield _error("recipe.rank_invalid", "rank", "fusing cuts no rank: resize the adapter first, then fuse that")
    if recipe.method is Method.CAT and recipe.rank:
        yield _error("recipe.rank_invalid", "rank", "cat puts the factors side by side, whatever the rank; svd cuts it")
    if (recipe.dequantize or recipe.onto) and operation is not MergeOperation.FUSE:
        yield _error("recipe.fuse_only", "onto", "another base and unpacking belong to fusing")
    if recipe.dequantize and recipe.onto:
        yield _error("recipe.fuse_only", "onto", "either another base or the unpacked one, not both")


def _source(recipe: Recipe, ingredient: Ingredient) -> Iterator[tuple[str, str]]:
    """Why this source cannot be used: a code, and words that follow its name."""
    facts: Mapping[str, Any] = ingredient.facts
    if ingredient.compat == "fail":
        yield "recipe.incompatible", f"does not fit its base {ingredient.base}"
    if not ingredient.is_finite:
        yield "recipe.not_finite", "holds NaN or infinite values, which no arithmetic makes right: train it again"
    if facts.get("kind", "text") != "text":
        yield "recipe.not_mergeable", "is an image model's adapter: it is not merged here"
    elif facts.get("format", "peft") != "peft":
        yield "recipe.not_mergeable", f"is stored as {facts['format']}: convert it to PEFT's layout first"
    method = methods.find(str(facts.get("method", "LORA")))
    if not method.mergeable:
        yield "recipe.not_mergeable", f"is {method.name}: it adds something beside the weights, so no weights equal it"
        return
    if recipe.operation is MergeOperation.FUSE and not method.fused_by:
        yield "recipe.not_mergeable", f"is {method.name}, which is not fused here: use PEFT's merge_and_unload"
    rules = list(_UNMERGEABLE)
    if recipe.operation in (MergeOperation.COMBINE, MergeOperation.RESIZE):
        rules += _UNSUMMABLE
        if not method.combinable:
            yield "recipe.method", f"is {method.name}: only plain LoRA has a low-rank weighted sum; convert it first"
        if facts.get("layer_replication"):
            yield "recipe.layers", "changes the depth of the base; fuse it instead"
    initialization = str(facts.get("initialization") or "")
    if facts.get("moves_base") or initializations.changes_base(initialization):
        start = f"was trained on weights that its initialization ({initialization}) changed"
        end = "on the unchanged base its update is wrong; convert it to a plain LoRA first"
        yield "recipe.base_was_changed", f"{start}: {end}"
    yield from ((code, words) for field, code, words in rules if facts.get(field))
