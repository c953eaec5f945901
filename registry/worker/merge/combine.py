"""Combine adapters of one base into one, and resize one: module by module, with every loss measured.

    linear            Σ weight * update, exactly; with a rank, the best approximation of it
    cat               the same sum, the factors side by side: rank = sum of the ranks
    svd               the best approximation of the sum at a rank (default: the largest of the sources)
    magnitude_prune   of each update the largest values (a share `density`), then the sum
    ties              pruned likewise; only the values on the side that outweighs the other, averaged (TIES, 2306.01708)
    dare_linear       of each update a random share `density`, scaled by 1 / density, then the sum (DARE, 2311.03099)
    dare_ties         chosen as in dare_linear, joined as in ties

Invariants
- A source counts with its effective update: scale = alpha / rank or alpha / √rank, by module; unequal ranks are fine.
- The sum is never formed from A and B apart: (a A1 + b A2)(a B1 + b B2) has cross terms that no adapter was trained to
  have (docs/merging.md gives the measured error).
- Chance comes from the seed and the module's name alone, so a recipe gives the same weights again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from registry.adapters.peft import ModuleUpdate
from registry.errors import Invalid
from registry.merging.recipes import MODULES_SAID, MergeReport, Method, ModuleLoss, Operation, Recipe
from registry.worker.merge import lowrank, writing
from registry.worker.merge.adapters import Adapter, widest
from registry.worker.merge.lowrank import Factors, Loss
from registry.worker.merge.writing import Made, UpdateTarget

Part = tuple[float, Factors]
"""A source's weight, and its update of the module at hand."""
Key = tuple[str, int]


def combine(
    recipe: Recipe, sources: Sequence[tuple[float, Adapter]], out: Path, *,
    progress: Callable[[str], None] = lambda _said: None,
) -> MergeReport:  # fmt: skip
    """Write the adapter that the recipe makes of these sources into `out`. `Invalid` if they do not go together."""
    modules = _modules(sources)
    dtype = widest([name for _, source in sources for name in source.lora.dtypes])
    updates, losses = [], []
    for done, (key, parts) in enumerate(modules.items()):
        update, target, to_sum = _module(recipe, key, parts, dtype)
        updates.append(update)
        losses.append((key[0], update.rank, target, to_sum))
        if done % 32 == 0:
            progress(f"{done} of {len(modules)} modules")
    writing.write(out, updates, writing.like([source.written for _, source in sources], updates), dtype)
    return report(recipe.operation, str(recipe.method), losses)


def report(operation: Operation, method: str, losses: Sequence[tuple[str, int, Loss, Loss]]) -> MergeReport:
    """(path, rank, loss against the method's aim, loss against the exact sum) of every module, added up."""
    aim, to_sum = (Loss.total(one[at] for one in losses) for at in (2, 3))  # type: ignore[misc]
    rows = [
        ModuleLoss(
            path=path, rank=rank, energy_kept=loss.energy_kept, relative_error=loss.relative_error,
            error_to_sum=other.relative_error,
        )
        for path, rank, loss, other in losses
    ]  # fmt: skip
    return MergeReport(
        operation=operation, method=method, rank=max(one[1] for one in losses), energy_kept=aim.energy_kept,
        relative_error=aim.relative_error, error_to_sum=to_sum.relative_error,
        modules=tuple(sorted(rows, key=lambda row: -row.relative_error)[:MODULES_SAID]),
    )  # fmt: skip


def _modules(sources: Sequence[tuple[float, Adapter]]) -> dict[Key, list[tuple[float, Adapter, ModuleUpdate]]]:
    modules: dict[Key, list[tuple[float, Adapter, ModuleUpdate]]] = {}
    for weight, source in sources:
        if not source.lora.is_plain:
            message = f"{source.folder.name} is more than low-rank pairs: it has no weighted sum with others"
            raise Invalid("RECIPE_INVALID", message, next_step="fuse it into its base instead")
        for module in source.lora.modules:
            modules.setdefault((module.path, module.order), []).append((weight, source, module))
    for (path, _), parts in modules.items():
        shapes = {(m.kind, m.a_shape[1:], m.b_shape[0], m.a_shape[0] // m.rank) for _, _, m in parts}
        if len(shapes) > 1:
            raise Invalid("RECIPE_INVALID", f"module {path} has different sizes in the sources: they have other bases")
    if len({source.contents.config.fan_in_fan_out for _, source in sources}) > 1:
        raise Invalid("RECIPE_INVALID", "fan_in_fan_out: the sources store their weights in different orders")
    return modules


def _module(
    recipe: Recipe, key: Key, parts: Sequence[tuple[float, Adapter, ModuleUpdate]], dtype: torch.dtype
) -> tuple[Made, Loss, Loss]:
    units = [(weight, source.factors(module)) for weight, source, module in parts]
    rank = recipe.rank or max(module.rank for _, _, module in parts)
    results, aims, sums = [], [], []
    for expert in range(len(units[0][1])):
        each = [(weight, factors[expert]) for weight, factors in units]
        result, aim, to_sum = _joined(recipe, each, rank, f"{key[0]}|{key[1]}|{expert}", dtype)
        results.append(result)
        aims.append(aim)
        sums.append(to_sum)
    module = parts[0][2]
    site = UpdateTarget(module.path, module.kind, module.order, module.a_shape[1:], module.parameter)
    return Made(site, results), Loss.total(aims), Loss.total(sums)


def _joined(
    recipe: Recipe, parts: Sequence[Part], rank: int, location: str, dtype: torch.dtype
) -> tuple[Factors, Loss, Loss]:
    """The update that the method makes, its loss against what the method wants, and against the exact sum."""
    exact = lowrank.weighted_sum(parts)
    if recipe.method in _AIMS:
        aim = _AIMS[recipe.method](recipe, parts, location)
        result = _rounded(lowrank.of_dense(aim, rank)[0], dtype)
        merged, expected = result.dense, exact.dense
        return result, _dense_loss(merged, aim), _dense_loss(merged, expected)
    if recipe.method is Method.CAT:
        result = exact
    elif recipe.method is Method.LINEAR and not recipe.rank:
        result, _ = lowrank.truncated(exact, None)
    else:
        result, _ = lowrank.truncated(exact, rank)
    result = _rounded(result, dtype)
    loss = lowrank.difference(result, exact)
    return result, loss, loss


def _rounded(factors: Factors, dtype: torch.dtype) -> Factors:
    return Factors(factors.left.to(dtype).float(), factors.right.to(dtype).float())


def _dense_loss(result: Tensor, target: Tensor) -> Loss:
    return Loss(float(target.double().square().sum()), float((result - target).double().square().sum()))


# ------------------------------------------------------------------ methods that look at every value of the update
def largest(update: Tensor, density: float) -> Tensor:
    """The `density` largest values of the update by size; the others are 0."""
    count = max(1, int(density * update.numel()))
    if count >= update.numel():
        return update
    indices = update.abs().view(-1).topk(count).indices
    mask = torch.zeros(update.numel(), dtype=torch.bool)
    mask[indices] = True
    return update * mask.view_as(update)


def dropped(update: Tensor, density: float, seed: int, location: str) -> Tensor:
    """Each value stays with probability `density` and is divided by it, so that the expected update is the same."""
    digest = hashlib.sha256(f"{seed}|{location}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    mask = torch.rand(update.shape, generator=generator) < density
    return update * mask / density


def elected(updates: Sequence[Tensor]) -> Tensor:
    """For each value the sign with more weight in all; the mean of the values that have it."""
    stacked = torch.stack(list(updates))
    sign = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agree = (stacked.sign() == sign) & (stacked != 0)
    return (stacked * agree).sum(0) / agree.sum(0).clamp(min=1)


def _pruned_sum(recipe: Recipe, parts: Sequence[Part], _location: str) -> Tensor:
    return torch.stack([weight * largest(update.dense, recipe.density) for weight, update in parts]).sum(0)


def _ties(recipe: Recipe, parts: Sequence[Part], _location: str) -> Tensor:
    return elected([weight * largest(update.dense, recipe.density) for weight, update in parts])


def _dare(recipe: Recipe, parts: Sequence[Part], location: str) -> list[Tensor]:
    return [
        weight * dropped(update.dense, recipe.density, recipe.seed, f"{location}|{at}")
        for at, (weight, update) in enumerate(parts)
    ]


_AIMS: dict[Method, Callable[[Recipe, Sequence[Part], str], Tensor]] = {
    Method.MAGNITUDE_PRUNE: _pruned_sum,
    Method.TIES: _ties,
    Method.DARE_LINEAR: lambda recipe, parts, location: torch.stack(_dare(recipe, parts, location)).sum(0),
    Method.DARE_TIES: lambda recipe, parts, location: elected(_dare(recipe, parts, location)),
}
