"""Combine adapters of one base into one, resize one, or extract one from two bases; the report states every loss.

- The sum is never formed from A and B apart: (a A1 + b A2)(a B1 + b B2) has cross terms that no adapter was trained to
  have (docs/merging.md gives the measured error).
- Randomness comes only from the seed and the module's name, so a recipe always gives the same weights.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from registry.adapters.peft import ModuleUpdate
from registry.bases import BaseSpec
from registry.client.local.base_folder import base_spec_from
from registry.errors import Invalid
from registry.merging.recipes import MODULES_SAID, MergeOperation, MergeReport, Method, ModuleLoss, Recipe
from registry.worker.merge import adapters, lowrank
from registry.worker.merge.adapters import Adapter, NewUpdate, UpdateTarget, widest
from registry.worker.merge.lowrank import Factors, Loss
from registry.worker.model.fingerprints import PLAIN_DTYPES, read_whole
from registry.worker.model.weights import Stored, Weights

Part = tuple[float, Factors]
"""A source's weight, and its update of the module at hand."""
Key = tuple[str, int]
Progress = Callable[[str], None]
EXAMPLES = 5


def combine(
    recipe: Recipe, sources: Sequence[tuple[float, Adapter]], out: Path, *, progress: Progress = lambda _text: None
) -> MergeReport:
    """Write the adapter that the recipe makes of these sources into `out`. `Invalid` if they do not go together."""
    modules = _modules(sources)
    dtype = widest([name for _, source in sources for name in source.lora.dtypes])
    updates, losses = [], []
    with lowrank.thread_pool() as pool:
        is_dense = recipe.method in _DENSE_METHODS  # its matrices are large: one at a time
        results = (map if is_dense else pool.map)(
            lambda item: _module(recipe, item[0], item[1], dtype), modules.items()
        )
        for done, ((path, _), (update, target, to_sum)) in enumerate(zip(modules, results, strict=True)):
            updates.append(update)
            losses.append((path, update.rank, target, to_sum))
            if done % 32 == 0:
                progress(f"{done} of {len(modules)} modules")
    config = adapters.config_like([source.config for _, source in sources], updates)
    adapters.write_adapter(out, updates, config, dtype)
    return report(recipe.operation, str(recipe.method), losses)


def report(operation: MergeOperation, method: str, losses: Sequence[tuple[str, int, Loss, Loss]]) -> MergeReport:
    """Add up (path, rank, loss against the method's aim, loss against the exact sum) of every module."""
    aim, to_sum = (Loss.total(row[column] for row in losses) for column in (2, 3))  # type: ignore[misc]
    rows = [
        ModuleLoss(
            path=path, rank=rank, energy_kept=loss.energy_kept, relative_error=loss.relative_error,
            error_to_sum=other.relative_error,
        )
        for path, rank, loss, other in losses
    ]  # fmt: skip
    return MergeReport(
        operation=operation, method=method, rank=max(row[1] for row in losses), energy_kept=aim.energy_kept,
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
) -> tuple[NewUpdate, Loss, Loss]:
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
    target = UpdateTarget(module.path, module.kind, module.order, module.a_shape[1:], module.parameter)
    return NewUpdate(target, results), Loss.total(aims), Loss.total(sums)


def _joined(
    recipe: Recipe, parts: Sequence[Part], rank: int, location: str, dtype: torch.dtype
) -> tuple[Factors, Loss, Loss]:
    """The update that the method makes, its loss against what the method wants, and against the exact sum."""
    exact = lowrank.weighted_sum(parts)
    if recipe.method in _DENSE_METHODS:
        thinned, joined = _DENSE_METHODS[recipe.method]
        aim = joined(thinned(recipe, parts, location))
        result = _rounded(lowrank.of_dense(aim, rank), dtype)
        merged = result.dense
        return result, _dense_loss(merged, aim), _dense_loss(merged, exact.dense)
    if recipe.method is Method.CAT:
        result = exact
    else:
        keeps_rank = recipe.method is Method.LINEAR and not recipe.rank
        result = lowrank.truncate(exact, None if keeps_rank else rank)
    result = _rounded(result, dtype)
    loss = lowrank.difference(result, exact)
    return result, loss, loss


def _rounded(factors: Factors, dtype: torch.dtype) -> Factors:
    return Factors(factors.left_factor.to(dtype).float(), factors.right_factor.to(dtype).float())


def _dense_loss(result: Tensor, target: Tensor) -> Loss:
    return Loss(float(target.double().square().sum()), float((result - target).double().square().sum()))


def largest(update: Tensor, density: float) -> Tensor:
    """The `density` largest values of the update by size; the others are 0."""
    count = max(1, int(density * update.numel()))
    if count >= update.numel():
        return update
    indices = update.abs().view(-1).topk(count).indices
    mask = torch.zeros(update.numel(), dtype=torch.bool)
    mask[indices] = True
    return update * mask.view_as(update)


def drop_values(update: Tensor, density: float, seed: int, location: str) -> Tensor:
    """Each value stays with probability `density` and is divided by it, so that the expected update is the same."""
    digest = hashlib.sha256(f"{seed}|{location}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    mask = torch.rand(update.shape, generator=generator) < density
    return update * mask / density


def elect_signs(updates: Sequence[Tensor]) -> Tensor:
    """For each value the sign with more weight in all; the mean of the values that have it."""
    stacked = torch.stack(list(updates))
    sign = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agree = (stacked.sign() == sign) & (stacked != 0)
    return (stacked * agree).sum(0) / agree.sum(0).clamp(min=1)


def _pruned(recipe: Recipe, parts: Sequence[Part], _location: str) -> list[Tensor]:
    return [weight * largest(update.dense, recipe.density) for weight, update in parts]


def _dare(recipe: Recipe, parts: Sequence[Part], location: str) -> list[Tensor]:
    return [
        weight * drop_values(update.dense, recipe.density, recipe.seed, f"{location}|{at}")
        for at, (weight, update) in enumerate(parts)
    ]


def _sum(updates: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(updates)).sum(0)


_DENSE_METHODS: dict[Method, tuple[Callable[..., list[Tensor]], Callable[[Sequence[Tensor]], Tensor]]] = {
    Method.MAGNITUDE_PRUNE: (_pruned, _sum),
    Method.TIES: (_pruned, elect_signs),
    Method.DARE_LINEAR: (_dare, _sum),
    Method.DARE_TIES: (_dare, elect_signs),
}
"""Methods that compute with whole matrices: how each update is thinned out, and how they are joined then."""


def extract(
    tuned: Path, base: Path, out: Path, *, rank: int, base_name: str = "", progress: Progress = lambda _text: None
) -> MergeReport:
    """Write the adapter of this rank into `out`: the best low-rank update that leads from `base` to `tuned`.

    Matrices that differ become LoRA pairs; whatever else differs is left out, and the report says so. `Invalid` when
    the two are not of one architecture, or are equal.
    """
    spec, _ = base_spec_from(base, base_name or base.name)
    olds = {stored.name: stored for stored in Weights.of(base).by_file_name.values()}
    news = {stored.name: stored for stored in Weights.of(tuned).by_file_name.values()}
    _demand_alike(olds, news, spec)
    updates, losses, left_out = [], [], []
    for at, (name, old) in enumerate(sorted(olds.items())):
        if at % 32 == 0:
            progress(f"{at} of {len(olds)} tensors")
        delta = read_whole(news[name]).float() - read_whole(old).float()
        if not bool(delta.any()):
            continue
        path, _, leaf = name.rpartition(".")
        module = spec.modules.get(path)
        if leaf != "weight" or module is None or module.kind not in ("linear", "conv1d") or delta.dim() != 2:
            left_out.append(name)
            continue
        matrix = delta.T.contiguous() if module.kind == "conv1d" else delta
        factors = lowrank.of_dense(matrix, rank)
        updates.append(NewUpdate(UpdateTarget(path, "linear", -1, (matrix.shape[1],)), [factors]))
        loss = _dense_loss(factors.dense, matrix)
        losses.append((path, factors.rank, loss, loss))
    if not updates:
        raise Invalid("RECIPE_INVALID", f"no matrix of {tuned.name} differs from {base.name}: there is no update")
    config = adapters.plain_config(spec.name, "CAUSAL_LM") | adapters.explicit_targets(updates)
    config["fan_in_fan_out"] = any(spec.modules[update.target.path].kind == "conv1d" for update in updates)
    adapters.write_adapter(out, updates, config, torch.float32)
    more = f" and {len(left_out) - EXAMPLES} more" if len(left_out) > EXAMPLES else ""
    note = f"not matrices of linear modules, and left out: {', '.join(left_out[:EXAMPLES])}{more}"
    result = report(MergeOperation.EXTRACT, str(Method.SVD), losses)
    return result.model_copy(update={"notes": (note,)}) if left_out else result


def _demand_alike(olds: dict[str, Stored], news: dict[str, Stored], spec: BaseSpec) -> None:
    if spec.quantization:
        raise Invalid("RECIPE_INVALID", f"the base is packed ({spec.quantization}): give its original weights")
    for name, old in olds.items():
        new = news.get(name)
        if new is not None and {old.info.dtype, new.info.dtype} - PLAIN_DTYPES:
            raise Invalid("RECIPE_INVALID", f"{name} is packed; give the original weights")
        if new is None or new.info.shape != old.info.shape:
            difference = (
                "is missing" if new is None else f"has shape {list(new.info.shape)}, not {list(old.info.shape)}"
            )
            raise Invalid("RECIPE_INVALID", f"these are different architectures: {name} {difference}")
