"""The updates of an adapter of an image model: those that its file states, and those loaded.

|B·A|² comes from the small products, tr((A·Aᵀ)(Bᵀ·B)), and ⟨B·A, D·C⟩ from tr((A·Cᵀ)(Dᵀ·B)); convolutions count with
their kernels. Both stay the same where a loader splits a fused matrix into its parts or folds the scale into a factor.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from registry.adapters.formats.facts import FileFacts, FileModule
from registry.adapters.formats.images import ALPHAS_UNREAD
from registry.compat.paths import Paths
from registry.merging import renaming

DOWN = (".lora_A.weight", ".lora_down.weight", ".down.weight")
UP = (".lora_B.weight", ".lora_up.weight", ".up.weight")
MAGNITUDES = (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")
TOLERANCE = 0.02
"""Of a module's norm: factors of 16 bits are rounded when a loader folds the scale into them."""


@dataclass(frozen=True, slots=True)
class ScaledPair:
    """scale · B·A of A [rank, in, ...] and B [out, rank, ...]."""

    a: Tensor
    b: Tensor
    scale: float = 1.0

    @property
    def squared_norm(self) -> float:
        """|scale · B·A|²."""
        return self.times(self)

    @torch.no_grad()
    def times(self, other: "ScaledPair") -> float:
        """The sum of the products of the elements of two updates of one shape."""
        a, b, other_a, other_b = (
            factor.to("cpu", torch.float64).flatten(1) for factor in (self.a, self.b, other.a, other.b)
        )
        return self.scale * other.scale * float(((a @ other_a.T) * (b.T @ other_b)).sum())


def stated(file: FileFacts, read: Callable[[str], Tensor]) -> Iterator[tuple[FileModule, ScaledPair]]:
    """The file's pairs with their updates; the scale is 1 where the file states none."""
    for module in file.modules:
        if module.a and module.b:
            yield module, ScaledPair(read(module.a), read(module.b), 1.0 if module.scale is None else module.scale)


def unscaled(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Path → |B·A|² of the pairs among tensors without alphas."""
    norms: dict[str, float] = {}
    tensors = {renaming.without_adapter_name(name): tensor for name, tensor in tensors.items()}
    for name, a in tensors.items():
        end = next((end for end in DOWN if name.endswith(end)), "")
        b = tensors.get(name.removesuffix(end) + UP[DOWN.index(end)]) if end else None
        if b is not None:
            norms[name.removesuffix(end)] = ScaledPair(a, b).squared_norm
    return norms


def loaded(components: Mapping[str, Any], adapter: str) -> dict[str, ScaledPair | None]:
    """Path → the update that PEFT's layers in these models apply for `adapter`; None if a layer got no values."""
    return {
        f"{component}.{path}": _update_of(layer, adapter)
        for component, model in components.items()
        for path, layer in model.named_modules()
        if adapter in getattr(layer, "lora_A", {})
    }


def _update_of(layer: Any, adapter: str) -> ScaledPair | None:
    a, b = layer.lora_A[adapter], layer.lora_B[adapter]
    magnitude = layer.lora_magnitude_vector[adapter].weight if adapter in layer.lora_magnitude_vector else None
    if any(value is not None and value.is_meta for value in (a.weight, b.weight, b.bias, magnitude)):
        return None
    return ScaledPair(a.weight, b.weight, layer.scaling[adapter])


def magnitudes(components: Mapping[str, Any], adapter: str) -> dict[str, Tensor]:
    """Path → the magnitudes of DoRA that PEFT's layers in these models apply for `adapter`."""
    return {
        f"{component}.{path}": layer.lora_magnitude_vector[adapter].weight
        for component, model in components.items()
        for path, layer in model.named_modules()
        if adapter in getattr(layer, "lora_magnitude_vector", {})
        and not layer.lora_magnitude_vector[adapter].weight.is_meta
    }


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """`stated`: how many the file has for these models. `dropped`: names of those that no layer applies as they are.

    `invented`: the layers that apply DoRA without magnitudes in the file, with those of the base instead.
    `orphans`: names of those whose pair the file has lost, so that a layer applies them without the trained update.
    """

    stated: int
    dropped: list[str]
    invented: list[str]
    orphans: list[str]


def compare_magnitudes(
    file: FileFacts, names: Iterable[str], read: Callable[[str], Tensor], applied: Mapping[str, Tensor],
    paths: Collection[str],
) -> Magnitudes:  # fmt: skip
    """Compare the file's magnitudes with those that layers apply; both by value, in the layers' dtype."""
    resolver, components = Paths(file.format, paths), {path.partition(".")[0] for path in paths}
    pairs = {module.path for module in file.modules if module.rank or module.out_features}
    stated, dropped, orphans, remaining, unresolved = 0, [], [], dict(applied), False
    for name in sorted(name for name in names if name.endswith(MAGNITUDES)):
        module = next(name.removesuffix(end) for end in MAGNITUDES if name.endswith(end))
        matches = resolver.of(module) or ()
        if not {path.partition(".")[0] for path in matches or file.components} <= components:
            continue
        stated += 1
        if module not in pairs:
            orphans.append(name)
        if not matches:
            unresolved = True
        layers = [remaining.pop(path) for path in matches if path in remaining]
        arrived = len(layers) == len(matches) and _are_equal(read(name), layers) if matches else bool(applied)
        if not arrived:
            dropped.append(name)
    return Magnitudes(stated, dropped, [] if unresolved else sorted(remaining), orphans)


def _are_equal(tensor: Tensor, layers: list[Tensor]) -> bool:
    applied = torch.cat([layer.flatten() for layer in layers])
    expected = tensor.to(applied).flatten()
    return expected.shape == applied.shape and torch.allclose(applied, expected, torch.finfo(applied.dtype).eps, 0.0)


@dataclass(frozen=True, slots=True)
class WrongStrength:
    """A module that is not applied as the file states: what the product of its factors is multiplied by."""

    module: FileModule
    stated: float
    loaded: float


@dataclass(frozen=True, slots=True)
class Arrival:
    """Which of the file's updates have arrived in the models. `pairs` and `tensors`: how many were compared.

    `absent`: names of the tensors of those that no layer applies. `uncompared`: the updates in a layer that are no
    plain pairs. `empty`: the layers without values, which compute with whatever their memory holds. `unseen`: the
    updates of models that the worker does not have.
    """

    pairs: int
    tensors: int
    absent: list[str]
    wrong: list[WrongStrength]
    uncompared: list[str]
    empty: list[str]
    unseen: list[str]


def compare(
    file: FileFacts, read: Callable[[str], Tensor], updates: Mapping[str, ScaledPair | None], paths: Collection[str]
) -> Arrival:
    """Compare the file's updates with the loaded ones. `paths`: the modules of the models that the worker has.

    Updates of other components are left out, as are pairs whose product is zero. Without an alpha the scale is 1, as in
    conversions; where alphas were not read, any strength is right. Updates whose names this registry cannot resolve are
    absent if nothing but the others is loaded.
    """
    resolver, components = Paths(file.format, paths), {path.partition(".")[0] for path in paths}
    pairs, tensors, others = 0, 0, {*updates}
    wrong: list[WrongStrength] = []
    uncompared: list[str] = []
    absent: list[str] = []
    unresolved: list[str] = []
    unseen: list[str] = []
    are_read = file.alpha_rule != ALPHAS_UNREAD
    pair_of = {module.path: update for module, update in stated(file, read)}
    for module in file.modules:
        matches = resolver.of(module.path) or ()
        if not {path.partition(".")[0] for path in matches or file.components} <= components:
            unseen.append(module.path)
            continue
        update = pair_of.get(module.path)
        product = ScaledPair(update.a, update.b) if update else None
        is_empty = any(path in updates and updates[path] is None for path in matches)
        if is_empty or (product is not None and not product.squared_norm > 0):
            others.difference_update(matches)
            continue
        others.difference_update(matches)
        layers = [layer for path in matches if (layer := updates.get(path)) is not None]
        names = [module.a, module.b] if update else [module.path]
        tensors += len(names)
        pairs += update is not None
        if not layers:
            if update is None or update.scale:  # else nothing is to be applied
                (absent if matches else unresolved).extend(names)
        elif update is None or product is None:
            uncompared.append(module.path)
        else:
            strength = _strength(product, layers, update.scale)
            if are_read and not abs(strength - update.scale) <= TOLERANCE * (abs(update.scale) or 1.0):
                wrong.append(WrongStrength(module, update.scale, strength))
    empty = sorted(path for path, layer in updates.items() if layer is None)
    absent += [] if others else unresolved
    return Arrival(pairs, tensors, absent, wrong, uncompared, empty, unseen)


def _strength(product: ScaledPair, layers: Sequence[ScaledPair], stated_scale: float) -> float:
    """What these layers multiply B·A by. Its sign is the stated one where they are not parts of B·A, in this order.

    A loader may swap parts: diffusers does in the last layer of Flux.
    """
    squared = product.squared_norm
    strength = math.sqrt(sum(layer.squared_norm for layer in layers) / squared)
    rows = [layer.b.shape[0] for layer in layers]
    widths = {math.prod(factor.shape[1:]) for factor in (product.a, *(layer.a for layer in layers))}
    if sum(rows) != product.b.shape[0] or len(widths) > 1 or not strength:
        return math.copysign(strength, stated_scale)
    parts = product.b.split(rows)
    inner = sum(ScaledPair(product.a, part).times(layer) for part, layer in zip(parts, layers, strict=True))
    is_clear = abs(inner) > squared * strength / 2
    return math.copysign(strength, inner if is_clear else stated_scale)
