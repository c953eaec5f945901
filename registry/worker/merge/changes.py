"""Changes of one tensor of a base, applied to some of its rows at a time.

A tensor is a matrix here: [out, everything else], a vector one row, a block of experts [experts * rows, columns].

Invariants
- `apply` changes the block in place and needs no other rows; what does (a norm over all rows) asks for a first pass.
- Blocks are in the working type, wider than what is stored; the caller rounds once, when all changes are done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

Rows = Callable[[], Iterator[tuple[int, Tensor]]]
"""All rows of the tensor again, in blocks: (index of the first, values)."""


class Change(Protocol):
    """What happens to a tensor. `dtype`: in which the blocks come; called once, before anything else."""

    def begin(self, dtype: torch.dtype, rows: Rows) -> None: ...

    def apply(self, block: Tensor, first: int) -> None: ...


class LowRank:
    """W + scale * left @ right: left is [rows, rank], right [rank, columns], scale one number or one for each rank."""

    def __init__(self, left: Tensor, right: Tensor, scale: float | Tensor) -> None:
        self.left, self.right, self.scale = left, right, scale

    def begin(self, dtype: torch.dtype, _rows: Rows) -> None:
        scale = self.scale.to(dtype) if isinstance(self.scale, Tensor) else self.scale
        self.left, self.right = (self.left.to(dtype) * scale).contiguous(), self.right.to(dtype).contiguous()

    def apply(self, block: Tensor, first: int) -> None:
        block.addmm_(self.left[first : first + len(block)], self.right)


class Blocks:
    """One change for each run of `height` rows: the experts of a fused parameter."""

    def __init__(self, parts: Sequence[LowRank], height: int) -> None:
        self.parts, self.height = parts, height

    def begin(self, dtype: torch.dtype, rows: Rows) -> None:
        for part in self.parts:
            part.begin(dtype, rows)

    def apply(self, block: Tensor, first: int) -> None:
        at = 0
        while at < len(block):
            which, inside = divmod(first + at, self.height)
            count = min(self.height - inside, len(block) - at)
            self.parts[which].apply(block[at : at + count], inside)
            at += count


class Dora:
    """m * (W + left @ right) / ‖W + left @ right‖, the norm of each output (DoRA, 2402.09353).

    `by_rows`: an output is a row, as linear modules are stored; else a column (Conv1D, embeddings), whose norms take
    a first pass over the tensor.
    """

    def __init__(self, update: LowRank, magnitude: Tensor, *, by_rows: bool) -> None:
        self.update, self.magnitude, self.by_rows = update, magnitude.flatten(), by_rows
        self._factor: Tensor | None = None

    def begin(self, dtype: torch.dtype, rows: Rows) -> None:
        self.update.begin(dtype, rows)
        self.magnitude = self.magnitude.to(dtype)
        if self.by_rows:
            return
        squares = torch.zeros(len(self.magnitude), dtype=torch.float64)
        for first, block in rows():
            self.update.apply(block, first)
            squares += block.double().square().sum(0)
        self._factor = self.magnitude / squares.sqrt().to(dtype)

    def apply(self, block: Tensor, first: int) -> None:
        self.update.apply(block, first)
        if self._factor is not None:
            block.mul_(self._factor)
        else:
            factor = self.magnitude[first : first + len(block)] / torch.linalg.vector_norm(block, dim=1)
            block.mul_(factor.unsqueeze(1))


class Plus:
    """W + scale * values, the same shape: the trained biases of an update."""

    def __init__(self, values: Tensor, scale: float) -> None:
        self.values, self.scale = values, scale

    def begin(self, dtype: torch.dtype, _rows: Rows) -> None:
        self.values = self.values.to(dtype) * self.scale

    def apply(self, block: Tensor, first: int) -> None:
        block += self.values.view(-1, block.shape[1])[first : first + len(block)]


class Scaled:
    """W * values: a column [rows, 1] scales the rows, a row [1, columns] the columns (IA3)."""

    def __init__(self, values: Tensor, turned: bool) -> None:
        self.values = values.T if turned else values

    def begin(self, dtype: torch.dtype, _rows: Rows) -> None:
        self.values = self.values.to(dtype)

    def apply(self, block: Tensor, first: int) -> None:
        block *= self.values if len(self.values) == 1 else self.values[first : first + len(block)]


class Replaced:
    """The whole tensor is another one, which `values` reads when its turn comes."""

    def __init__(self, values: Callable[[], Tensor]) -> None:
        self._read = values
        self._values: Tensor | None = None

    def begin(self, _dtype: torch.dtype, _rows: Rows) -> None:
        self._values = self._read()

    def apply(self, block: Tensor, first: int) -> None:
        if self._values is not None:
            block.copy_(self._values.reshape(-1, block.shape[1])[first : first + len(block)])


class NewRows:
    """Some rows are others: the trained tokens of an embedding."""

    def __init__(self, indices: Sequence[int], values: Tensor) -> None:
        self._at = {row: index for index, row in enumerate(indices)}
        self.values = values

    def begin(self, dtype: torch.dtype, _rows: Rows) -> None:
        self.values = self.values.to(dtype)

    def apply(self, block: Tensor, first: int) -> None:
        for row, index in self._at.items():
            if first <= row < first + len(block):
                block[row - first] = self.values[index]
