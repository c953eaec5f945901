"""The updates of an adapter's modules: their Frobenius norms, and how similar those of two adapters are.

An update is scale * B @ A, with A [rank, in] and B [out, rank] in 32 bits; it is never multiplied out:
|BA|² = sum((BᵀB) ∘ (AAᵀ)). Methods other than LoRA have no update of this form and are left out.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from registry.adapters.read import Pair, PeftContents, read_contents
from registry.digest import Digest
from registry.versions.files import CONFIG, WEIGHTS, kind_of
from registry.versions.manifest import Descriptor


def read_adapter(folder: Path) -> PeftContents:
    """Read configuration and header of a PEFT adapter's folder; no tensor is read. Errors are `read_contents`'."""
    files = [
        Descriptor(path=name, media_type=kind.media_type, digest=Digest.of(b""), size_bytes=path.stat().st_size)
        for name, path in ((CONFIG, folder / CONFIG), (WEIGHTS, folder / WEIGHTS))
        if path.exists() and (kind := kind_of(name)) is not None
    ]

    def read(name: str, start: int, length: int) -> bytes:
        with open(folder / name, "rb") as file:
            file.seek(start)
            return file.read(length)

    return read_contents(files, read)


@dataclass(frozen=True, slots=True)
class UpdateNorms:
    """|A|, |B| and |scale · BA| of one module."""

    a: float
    b: float
    update: float


@dataclass(frozen=True, slots=True)
class Update:
    """One module's factors: `a` [experts, rank, in], `b` [experts, out, rank]; any other module is one expert.

    A parameter of a block of experts is one update, named with its block: the updates of all experts, side by side.
    """

    path: str
    scale: float
    a: torch.Tensor
    b: torch.Tensor

    @property
    def sides(self) -> tuple[int, int, int]:
        """Number of pairs, inputs, and outputs."""
        return len(self.a), self.a.shape[2], self.b.shape[1]

    def norms(self) -> UpdateNorms:
        """The Frobenius norms of both factors and of the update."""
        squared = float(((self.b.mT @ self.b) * (self.a @ self.a.mT)).sum())
        return UpdateNorms(float(self.a.norm()), float(self.b.norm()), abs(self.scale) * math.sqrt(max(squared, 0.0)))


def updates_of(pairs: Iterable[Pair], names: Collection[str], read: Callable[[str], torch.Tensor]) -> Iterator[Update]:
    """The updates of the pairs whose two tensors are among `names`, one module at a time."""
    for pair in pairs:
        if pair.a in names and pair.b in names:
            a, b = (read(name).float().flatten(1) for name in (pair.a, pair.b))
            a = a.view(pair.experts, pair.rank, -1)
            b = b.view(b.shape[0], pair.rank, pair.experts).permute(2, 0, 1)
            yield Update(pair.path, pair.scale, a, b)


def read_updates(folder: Path) -> Iterator[Update]:
    """The updates of an adapter's folder, in the order of their modules. Errors are those of reading its files."""
    contents = read_adapter(folder)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        yield from updates_of(contents.pairs, set(file.keys()), file.get_tensor)


class UpdateChange(NamedTuple):
    """How one module's update differs from another. `norm_ratio`: |second| / |first|, None if the first is zero."""

    cosine: float | None
    norm_ratio: float | None


def compare(first: Path, second: Path) -> dict[str, UpdateChange]:
    """Module → change from the first update to the second, for modules that both adapters target.

    <B₁A₁, B₂A₂> = sum((B₁ᵀB₂) ∘ (A₁A₂ᵀ)), so the ranks may differ.
    """
    change_of: dict[str, UpdateChange] = {}
    others = {update.path: update for update in read_updates(second)}
    for update in read_updates(first):
        other = others.pop(update.path, None)
        if other is None or update.sides != other.sides:
            continue
        inner = float(((update.b.mT @ other.b) * (update.a @ other.a.mT)).sum()) * update.scale * other.scale
        before, after = update.norms().update, other.norms().update
        size = before * after
        cosine = max(-1.0, min(1.0, inner / size)) if size > 0 and math.isfinite(size) else None
        ratio = after / before if before > 0 and math.isfinite(size) else None
        change_of[update.path] = UpdateChange(cosine, ratio)
    return change_of
