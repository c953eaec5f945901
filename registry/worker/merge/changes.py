"""Changes of one tensor of a base, applied in place to some of its rows at a time.

A tensor is a matrix here: [out, everything else], a vector one row, a block of experts [experts * rows, columns].
Blocks are in a wider type than the stored one; the caller rounds once, after all changes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

Rows = Callable[[], Iterator[tuple[int, Tensor]]]
"""Reads all rows of the tensor again, in blocks: (index of the first row, values)."""


class Change(Protocol):
    """A change of a tensor."""

    def begin(self, dtype: torch.dtype, rows: Rows) -> None:
        """Prepare, once, for blocks of this type. A change that depends on all rows reads them here."""

    def apply(self, block: Tensor, first: int) -> None:
        """Change the rows of the block, whose first row has this index."""


class LowRank:
    """W + scale * L @ R, left factor L [rows, rank], right factor R [rank, columns].

    `scale`: one number, or one for each rank.
    """

    def __init__(self, left_factor: Tensor, right_factor: Tensor, scale: float | Tensor) -> None:
        self.left_factor, self.right_factor, self.scale = left_factor, right_factor, scale

    def begin(self, dtype: torch.dtype, _rows: Rows) -> None:
        """Convert the factors and fold the scale in."""
        scale = self.scale.to(dtype) if isinstance(self.scale, Tensor) else self.scale
        self.left_factor, self.right_factor = (
            (self.left_factor.to(dtype) * scale).contiguous(),
            self.right_factor.to(dtype).contiguous(),
        )

    def apply(self, block: Tensor, first: int) -> None:
        """Add the product of the factors to these rows."""
        block.addmm_(self.left_factor[first : first + len(block)], self.right_factor)


class Blocks:
    """One change for each run of `height` rows: the experts of a fused parameter."""

    def __init__(self, parts: Sequence[LowRank], height: int) -> None:
        self.parts, self.height = parts, height

    def begin(self, dtype: torch.dtype, rows: Rows) -> None:
        """Prepare the change of each expert."""
        for part in self.parts:
            part.begin(dtype, rows)

    def apply(self, block: Tensor, first: int) -> None:
        """Apply to each run of rows the change of its expert."""
        at = 0
        while at < len(block):
            which, inside = divmod(first + at, self.height)
            count = min(self.height - inside, len(block) - at)
            self.parts[which].apply(block[at : at + count], inside)
            at += count


class Dora:
    """m * (W + L @ R) / ‖W + L @ R‖, the norm of each output (DoRA, 2402.09353).

    `by_rows`: an output is a row, as linear modules are stored; else a column (Conv1D, embeddings), whose norms take
    a first pass over the tensor.
    """

    def __init__(self, update: LowRank, magnitude: Tensor, *, by_rows: bool) -> None:
        self.update, self.magnitude, self.by_rows = update, magnitude.flatten(), by_rows
        self._factor: Tensor | None = None

    def begin(self, dtype: torch.dtype, rows: Rows) -> None:
        """Prepare the update; measure the norms of columns."""
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
        """Add the update and rescale each output to its magnitude."""
        self.update.apply(block, first)
        if self._factor is not None:
            block.mul_(self._factor)
        else:
            factor = self.magnitude[first : first + len(block)] / torch.linalg.vector_norm(block, dim=1)
            block.mul_(factor.unsqueeze(1))


class _ValuesChange:
    def __init__(self, values: Tensor) -> None:
        self.values = values

    def begin(self, dtype: torch.dtype, _rows: Rows) -> None:
        self.values = self.values.to(dtype)


class Sum(_ValuesChange):
    """W + scale * values, of one shape: the trained biases of an update."""

    def __init__(self, values: Tensor, scale: float) -> None:
        super().__init__(values)
        self._scale = scale

    def apply(self, block: Tensor, first: int) -> None:
        """Add the values of these rows."""
        block.add_(self.values.view(-1, block.shape[1])[first : first + len(block)], alpha=self._scale)


class Scaled(_ValuesChange):
    """W * values: a column [rows, 1] scales the rows, a row [1, columns] the columns (IA3)."""

    def apply(self, block: Tensor, first: int) -> None:
        """Multiply these rows."""
        block *= self.values if len(self.values) == 1 else self.values[first : first + len(block)]


class Replaced:
    """The whole tensor is replaced by the one that `values_of` makes of its rows."""

    def __init__(self, values_of: Callable[[Rows], Tensor]) -> None:
        self._values_of = values_of
        self._values: Tensor | None = None

    def begin(self, _dtype: torch.dtype, rows: Rows) -> None:
        """Make the new values."""
        self._values = self._values_of(rows)

    def apply(self, block: Tensor, first: int) -> None:
        """Copy the new values of these rows."""
        if self._values is not None:
            block.copy_(self._values.reshape(-1, block.shape[1])[first : first + len(block)])


class NewRows(_ValuesChange):
    """Some rows are replaced: the trained tokens of an embedding."""

    def __init__(self, indices: Sequence[int], values: Tensor) -> None:
        super().__init__(values)
        self._rows = list(indices)

    def apply(self, block: Tensor, first: int) -> None:
        """Copy the rows of this block that are replaced."""
        for index, row in enumerate(self._rows):
            if first <= row < first + len(block):
                block[row - first] = self.values[index]
