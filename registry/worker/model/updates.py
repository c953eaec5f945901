"""The updates of an adapter's modules as numbers: their norms, and how alike those of two adapters are.

    update of a module      scale * B @ A, with A [rank, in] and B [out, rank]; it is never multiplied out

Invariants
- Values are taken as 32-bit floats. Norms hold one module at a time, cosines all of one of the two adapters;
  nothing of the base is needed.
- All norms are Frobenius norms: |BA|² = sum((BᵀB) ∘ (AAᵀ)), which costs rank² numbers.
- A parameter of a block of fused experts is one update, named with its block: the updates of all experts, side by side.
- Methods other than LoRA have no update of this form and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from registry.adapters import peft, safetensors
from registry.adapters.peft import ModuleUpdate, config
from registry.files import CONFIG, WEIGHTS

_PREFIX = "base_model.model."
_HALVES = ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B"))


@dataclass(frozen=True, slots=True)
class UpdateNorms:
    """|A|, |B| and |scale · BA| of one module."""

    a: float
    b: float
    update: float


@dataclass(frozen=True, slots=True)
class Update:
    """One module's halves: `a` [experts, rank, in], `b` [experts, out, rank]; any other module is one expert."""

    path: str
    scale: float
    a: torch.Tensor
    b: torch.Tensor

    @property
    def sides(self) -> tuple[int, int, int]:
        return len(self.a), self.a.shape[2], self.b.shape[1]

    def norms(self) -> UpdateNorms:
        squared = float(((self.b.mT @ self.b) * (self.a @ self.a.mT)).sum())
        return UpdateNorms(float(self.a.norm()), float(self.b.norm()), abs(self.scale) * math.sqrt(max(squared, 0.0)))


def of_folder(folder: Path) -> Iterator[Update]:
    """The updates of an adapter's folder, in the order of their modules. Errors are those of reading its files."""
    written = config.read_config((folder / CONFIG).read_bytes(), file=CONFIG)
    weights = folder / WEIGHTS
    with open(weights, "rb") as file:

        def read(start: int, length: int) -> bytes:
            file.seek(start)
            return file.read(length)

        header = safetensors.read_header(read, weights.stat().st_size, file=WEIGHTS)
    spec = peft.describe(written, header)
    with safe_open(weights, framework="pt") as opened:
        there = set(opened.keys())
        for module in spec.modules:
            halves = _halves(module, there)
            if halves is not None:
                a, b = (opened.get_tensor(name).float().flatten(1) for name in halves)
                fused = module.kind == "parameter"
                experts = a.shape[0] // module.rank if fused else 1
                a, b = a.view(experts, module.rank, -1), b.view(b.shape[0], module.rank, experts).permute(2, 0, 1)
                yield Update(module.key if fused else module.path, module.scale, a, b)


def _halves(module: ModuleUpdate, there: set[str]) -> tuple[str, str] | None:
    for a, b in _HALVES:
        start = f"{_PREFIX}{module.path}{'.base_layer' * max(module.order, 0)}"
        names = (start + a, start + b)
        if there.issuperset(names):
            return names
    return None


def norms(folder: Path) -> dict[str, UpdateNorms]:
    """The norms of every module's update."""
    return {update.path: update.norms() for update in of_folder(folder)}


def cosines(first: Path, second: Path) -> dict[str, float | None]:
    """Module → cosine of its two updates, for modules that both adapters touch; None where an update is zero.

    <B₁A₁, B₂A₂> = sum((B₁ᵀB₂) ∘ (A₁A₂ᵀ)), so the ranks may differ.
    """
    cosine_of: dict[str, float | None] = {}
    waiting = {update.path: update for update in of_folder(second)}
    for update in of_folder(first):
        match = waiting.pop(update.path, None)
        if match is None or update.sides != match.sides:
            continue
        inner = float(((update.b.mT @ match.b) * (update.a @ match.a.mT)).sum()) * update.scale * match.scale
        size = update.norms().update * match.norms().update
        cosine_of[update.path] = max(-1.0, min(1.0, inner / size)) if size > 0 and math.isfinite(size) else None
    return cosine_of
