"""Factored sums and truncations against the dense arithmetic that they replace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import Tensor

torch = pytest.importorskip("torch")
hypothesis = pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from registry.worker.merge import lowrank
from registry.worker.merge.combine import drop_values, elect_signs, largest
from registry.worker.merge.lowrank import Factors

sizes = st.integers(1, 24)


@st.composite
def sums(draw: st.DrawFn) -> tuple[Factors, Tensor]:
    """A weighted sum of one to four updates of unequal ranks, and the same as a dense matrix in 64 bits."""
    rows, columns = draw(sizes), draw(sizes)
    torch.manual_seed(draw(st.integers(0, 10_000)))
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        rank, weight = draw(st.integers(1, 12)), draw(st.sampled_from([-2.0, -0.3, 0.0, 0.7, 1.0]))
        parts.append((weight, Factors(torch.randn(rows, rank), torch.randn(rank, columns))))
    dense = sum(weight * (update.left_factor.double() @ update.right_factor.double()) for weight, update in parts)
    return lowrank.weighted_sum(parts), dense


@settings(max_examples=150, deadline=None)
@given(sums())
def test_the_sum_is_exact_whatever_the_ranks(case: tuple[Factors, Tensor]) -> None:
    total, dense = case
    scale = max(1.0, float(dense.norm()))
    assert float((total.dense - dense).norm()) <= 1e-4 * scale
    shorter = lowrank.truncate(total, None)
    assert float((shorter.dense - dense).norm()) <= 1e-4 * scale
    assert shorter.rank <= max(1, min(total.rank, *dense.shape))
    assert lowrank.difference(shorter, total).relative_error <= 1e-4


@settings(max_examples=150, deadline=None)
@given(sums(), st.integers(1, 16))
def test_a_truncation_errs_as_the_dense_svd_does(case: tuple[Factors, Tensor], rank: int) -> None:
    total, dense = case
    values = torch.linalg.svdvals(dense)
    best = float(values[rank:].norm())
    scale = max(1.0, float(values.norm()))
    shorter = lowrank.truncate(total, rank)
    loss = lowrank.difference(shorter, total)
    error = float((shorter.dense - dense).norm())
    assert shorter.rank <= rank
    assert abs(error - best) <= 1e-4 * scale
    assert abs(loss.relative_error * float(values.norm()) - best) <= 1e-4 * scale
    assert abs(loss.energy_kept - (1 - loss.relative_error**2)) < 1e-6
    of_dense = lowrank.of_dense(dense.float(), rank)
    assert abs(float((of_dense.dense - dense).norm()) - best) <= 1e-4 * scale
    assert abs(lowrank.difference(of_dense, total).relative_error - loss.relative_error) <= 1e-3


@settings(max_examples=60, deadline=None)
@given(sums())
def test_a_difference_is_measured_on_the_factors(case: tuple[Factors, Tensor]) -> None:
    total, dense = case
    shorter = lowrank.truncate(total, 1)
    loss = lowrank.difference(shorter, total)
    norm = float(dense.norm())
    assert abs(loss.target**0.5 - norm) <= 1e-4 * max(1.0, norm)
    assert abs(loss.lost**0.5 - float((shorter.dense - dense).norm())) <= 1e-3 * max(1.0, norm)


def test_pruning_and_electing_are_those_of_peft_where_weights_are_equal() -> None:
    utils = pytest.importorskip("peft.utils.merge_utils")
    torch.manual_seed(1)
    updates = [torch.randn(20, 30) for _ in range(3)]
    for density in (0.2, 0.5, 1.0):
        for update in updates:
            assert torch.equal(largest(update, density), utils.prune(update, density, "magnitude"))
        ours = elect_signs([largest(update, density) for update in updates])
        theirs = utils.ties(updates, torch.ones(3), density)
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_dropping_is_seeded_by_place_and_keeps_the_expected_value() -> None:
    update = torch.ones(400, 400)
    once = drop_values(update, 0.25, 7, "layer.0")
    assert torch.equal(once, drop_values(update, 0.25, 7, "layer.0"))
    assert not torch.equal(once, drop_values(update, 0.25, 7, "layer.1"))
    assert not torch.equal(once, drop_values(update, 0.25, 8, "layer.0"))
    assert set(once.unique().tolist()) == {0.0, 4.0}
    assert abs(float(once.mean()) - 1) < 0.02


def test_nothing_summed_is_nothing() -> None:
    zero = Factors(torch.zeros(5, 2), torch.randn(2, 6))
    shorter = lowrank.truncate(zero, 1)
    loss = lowrank.difference(shorter, zero)
    assert (shorter.rank, loss.relative_error, loss.energy_kept) == (1, 0.0, 1.0)
    assert float(shorter.dense.abs().max()) == 0.0
