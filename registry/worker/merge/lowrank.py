"""Low-rank updates as pairs of factors: their exact weighted sum, the best one of a smaller rank, and what it loses.

An update is `left_factor @ right_factor`, [rows, rank] @ [rank, columns], with every scale folded in. The dense
product is never formed: cost grows with (rows + columns) * rank².
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

NOISE = 1e-6
"""Singular values below this share of the largest are rounding noise of 32-bit factors."""
THREADS_LIMIT = 8
"""Each thread holds the factors of one module: 0.2 GB for a rank of 512 and 28,672 rows."""


@contextmanager
def thread_pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that each compute a module with one thread of torch: sharing out small matrices costs more than it saves.

    What waits is dropped after an error.
    """
    count = torch.get_num_threads()
    pool = ThreadPoolExecutor(min(count, THREADS_LIMIT), "merge", torch.set_num_threads, (1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(count)


class Factors(NamedTuple):
    """The update `left_factor @ right_factor`, [rows, rank] @ [rank, columns], both 32 or 64 bit."""

    left_factor: Tensor
    right_factor: Tensor

    @property
    def rank(self) -> int:
        """Columns of the left factor."""
        return self.left_factor.shape[1]

    @property
    def dense(self) -> Tensor:
        """The product, [rows, columns]."""
        return self.left_factor @ self.right_factor

    def times(self, weight: float) -> Factors:
        """Return the update times a number."""
        return Factors(self.left_factor * weight, self.right_factor)


@dataclass(frozen=True, slots=True)
class Loss:
    """Squared Frobenius norms, which add up over modules: of the target, and of the result's difference from it."""

    target: float
    lost: float

    @property
    def relative_error(self) -> float:
        """‖result - target‖ / ‖target‖; 0 for a target of zeros."""
        return math.sqrt(self.lost / self.target) if self.target > 0 else 0.0

    @property
    def energy_kept(self) -> float:
        """1 - lost / target: the share of the squared norm that a truncation keeps."""
        return max(0.0, 1.0 - self.lost / self.target) if self.target > 0 else 1.0

    @classmethod
    def total(cls, losses: Iterable[Loss]) -> Loss:
        """Return the loss of several modules together."""
        losses = list(losses)
        return cls(sum(loss.target for loss in losses), sum(loss.lost for loss in losses))


def weighted_sum(parts: Sequence[tuple[float, Factors]]) -> Factors:
    """Compute Σ weight * update exactly: the factors side by side. Its rank is the sum of the ranks."""
    joined = torch.cat([update.left_factor * weight for weight, update in parts], dim=1)
    return Factors(joined, torch.cat([update.right_factor for _, update in parts], dim=0))


def truncate(update: Factors, rank: int | None) -> Factors:
    """Return the best update of at most `rank` in the Frobenius norm (Eckart and Young 1936).

    Both factors share the scale evenly. None keeps every singular value that is not noise. QR of each factor leaves a
    core of [rank, rank], whose SVD is that of the product (Q1 R1)(Q2 R2)ᵀ.
    """
    q_left, r_left = torch.linalg.qr(update.left_factor)
    q_right, r_right = torch.linalg.qr(update.right_factor.T)
    u, values, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    limit = len(values) if rank is None else min(rank, len(values))
    count = max(1, min(limit, int((values > values[0] * NOISE).sum())))
    shared = values[:count].sqrt()
    left_factor, right_factor = (q_left @ u)[:, :count] * shared, shared.unsqueeze(1) * (vh @ q_right.T)[:count]
    return Factors(left_factor.contiguous(), right_factor.contiguous())


def of_dense(matrix: Tensor, rank: int) -> Factors:
    """Return the best update of at most `rank` for a dense matrix [rows, columns].

    It uses the eigenvectors of the smaller Gram matrix in 64 bits: one product instead of a dense SVD.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    flat = (matrix if wide else matrix.T).double()
    squares, vectors = torch.linalg.eigh(flat @ flat.T)
    largest = vectors[:, -min(rank, len(squares)) :].flip(1)
    shared = squares.clamp(min=0).sqrt().flip(0)[: largest.shape[1]].clamp(min=1e-30).sqrt()
    columns, right_factor = largest * shared, (largest.T @ flat) / shared.unsqueeze(1)
    factors = Factors(columns, right_factor) if wide else Factors(right_factor.T, columns.T)
    return Factors(*(half.to(matrix.dtype).contiguous() for half in factors))


def squared_norm(update: Factors) -> float:
    """Compute ‖left_factor @ right_factor‖² from the factors' Gram matrices in 64 bits."""
    left_factor, right_factor = update.left_factor.double(), update.right_factor.double()
    return max(0.0, float(((left_factor.T @ left_factor) * (right_factor @ right_factor.T)).sum()))


def difference(result: Factors, target: Factors) -> Loss:
    """Measure the difference of `result` from `target` on the factors."""
    return Loss(squared_norm(target), squared_norm(weighted_sum([(1.0, result), (-1.0, target)])))
