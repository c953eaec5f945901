"""The updates of an adapter of an image model, as squared norms: those that its file states, and those loaded.

|scale · B·A|² comes from the small products, tr((A·Aᵀ)(Bᵀ·B)); convolutions count with their kernels. It stays the same
where a loader splits a fused matrix into its parts or folds the scale into a factor.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

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


@torch.no_grad()
def squared_norm(a: Tensor, b: Tensor, scale: float = 1.0) -> float:
    """|scale · B·A|² of A [rank, in, ...] and B [out, rank, ...]."""
    wide_a, wide_b = a.to(torch.float64).flatten(1), b.to(torch.float64).flatten(1)
    return scale**2 * float(((wide_a @ wide_a.T) * (wide_b.T @ wide_b)).sum())


def stated(file: FileFacts, read: Callable[[str], Tensor]) -> Iterator[tuple[FileModule, float]]:
    """The file's pairs with their squared norms; the scale is 1 where the file states none."""
    for module in file.modules:
        if module.a and module.b:
            yield module, squared_norm(read(module.a), read(module.b), 1.0 if module.scale is None else module.scale)


def unscaled(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Path → |B·A|² of the pairs among tensors without alphas."""
    norms: dict[str, float] = {}
    tensors = {renaming.without_adapter_name(name): tensor for name, tensor in tensors.items()}
    for name, a in tensors.items():
        end = next((end for end in DOWN if name.endswith(end)), "")
        b = tensors.get(name.removesuffix(end) + UP[DOWN.index(end)]) if end else None
        if b is not None:
            norms[name.removesuffix(end)] = squared_norm(a, b)
    return norms


def loaded(components: Mapping[str, Any], adapter: str) -> dict[str, float]:
    """Path → squared norm of the update that PEFT's layers in these models apply for `adapter`."""
    return {
        f"{component}.{path}": squared_norm(
            layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter]
        )
        for component, model in components.items()
        for path, layer in model.named_modules()
        if adapter in getattr(layer, "lora_A", {})
    }


def magnitudes(components: Mapping[str, Any], adapter: str) -> dict[str, Tensor]:
    """Path → the magnitudes of DoRA that PEFT's layers in these models apply for `adapter`."""
    return {
        f"{component}.{path}": layer.lora_magnitude_vector[adapter].weight
        for component, model in components.items()
        for path, layer in model.named_modules()
        if adapter in getattr(layer, "lora_magnitude_vector", {})
    }


class Magnitudes(NamedTuple):
    """`stated`: how many the file has for these models. `dropped`: names of those that no layer applies as they are.

    `invented`: the layers that apply DoRA without magnitudes in the file, with those of the base instead.
    """

    stated: int
    dropped: list[str]
    invented: list[str]


def compare_magnitudes(
    file: FileFacts, names: Iterable[str], read: Callable[[str], Tensor], applied: Mapping[str, Tensor],
    paths: Collection[str],
) -> Magnitudes:  # fmt: skip
    """Compare the file's magnitudes with those that layers apply; both by value, in the layers' dtype."""
    resolver, components = Paths(file.format, paths), {path.partition(".")[0] for path in paths}
    stated, dropped, remaining, unresolved = 0, [], dict(applied), False
    for name in sorted(name for name in names if name.endswith(MAGNITUDES)):
        module = next(name.removesuffix(end) for end in MAGNITUDES if name.endswith(end))
        matches = resolver.of(module) or ()
        if not {path.partition(".")[0] for path in matches or file.components} <= components:
            continue
        stated += 1
        if not matches:
            unresolved = True
        layers = [remaining.pop(path) for path in matches if path in remaining]
        arrived = len(layers) == len(matches) and _are_equal(read(name), layers) if matches else bool(applied)
        if not arrived:
            dropped.append(name)
    return Magnitudes(stated, dropped, [] if unresolved else sorted(remaining))


def _are_equal(tensor: Tensor, layers: list[Tensor]) -> bool:
    applied = torch.cat([layer.flatten() for layer in layers])
    expected = tensor.to(applied).flatten()
    return expected.shape == applied.shape and torch.allclose(applied, expected, torch.finfo(applied.dtype).eps, 0.0)


class WrongStrength(NamedTuple):
    """A module that is not applied as the file states: what the product of its factors is multiplied by."""

    module: FileModule
    stated: float
    loaded: float


class Arrival(NamedTuple):
    """Which of the file's pairs have arrived in the models; `pairs`: how many were compared."""

    pairs: int
    absent: list[FileModule]
    wrong: list[WrongStrength]


def compare(
    file: FileFacts, read: Callable[[str], Tensor], norms: Mapping[str, float], paths: Collection[str]
) -> Arrival:
    """Compare the file's pairs with the loaded updates. `paths`: the modules of the models that the worker has.

    Pairs of other components are left out, as are those of an update of zero. Without an alpha the scale is 1, as in
    conversions; where alphas were not read, any strength is right. Pairs whose names this registry cannot resolve are
    absent if nothing but the others is loaded.
    """
    resolver, components = Paths(file.format, paths), {path.partition(".")[0] for path in paths}
    pairs, absent, wrong = 0, [], []
    loaded_norms, others = defaultdict(float, norms), {*norms}
    unresolved: list[FileModule] = []
    are_read = file.alpha_rule != ALPHAS_UNREAD
    for module, squared in stated(file, read):
        matches = resolver.of(module.path) or ()
        if not {path.partition(".")[0] for path in matches or file.components} <= components or not squared > 0:
            continue
        pairs += 1
        others.difference_update(matches)
        if not matches:
            unresolved.append(module)
            continue
        if not any(path in norms for path in matches):
            absent.append(module)
            continue
        ratio = math.sqrt(sum(loaded_norms[path] for path in matches) / squared)
        if are_read and not abs(ratio - 1) <= TOLERANCE:
            scale = 1.0 if module.scale is None else abs(module.scale)
            wrong.append(WrongStrength(module, scale, scale * ratio))
    return Arrival(pairs, absent + ([] if others else unresolved), wrong)
