"""An approximation is the best of its rank, and the error it states is the error it has."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.canonical_made import IN, OUT, randn
from livery_adapters.approximate import factorise, truncate
from livery_adapters.canonical import LowRank

RANKS = st.integers(1, 10)
SEEDS = st.integers(0, 2**16)


def product(pair: LowRank) -> Tensor:
    return pair.scale * pair.b.double() @ pair.a.double()


def best_error(delta: Tensor, rank: int) -> float:
    """What no pair of this rank can go below (Eckart and Young)."""
    values = torch.linalg.svdvals(delta.double())
    return float(values[rank:].norm() / values.norm())


def true_error(delta: Tensor, pair: LowRank) -> float:
    return float((delta.double() - product(pair)).norm() / delta.double().norm())


@given(rank=RANKS, seed=SEEDS)
def test_a_small_matrix_is_approximated_as_well_as_can_be(rank: int, seed: int) -> None:
    delta = randn(OUT, IN, seed=seed)
    pair, error = factorise(delta, rank)
    assert pair.rank == min(rank, IN)
    assert error == pytest.approx(best_error(delta, rank), rel=1e-4, abs=1e-5)
    assert error == pytest.approx(true_error(delta, pair), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("shape", [(700, 500), (450, 900)])
@pytest.mark.parametrize("decay", [0.1, 1.0])
def test_a_large_matrix_is_sketched_nearly_as_well(shape: tuple[int, int], decay: float) -> None:
    """Singular values that fall like 1/k^decay: a slow fall is the sketch's hard case."""
    size = min(shape)
    left = torch.linalg.qr(randn(shape[0], size, seed=1)).Q
    right = torch.linalg.qr(randn(shape[1], size, seed=2)).Q
    values = torch.arange(1, size + 1) ** -decay
    delta = left * values @ right.T
    pair, error = factorise(delta, 16)
    assert error == pytest.approx(true_error(delta, pair), rel=1e-4)
    assert best_error(delta, 16) <= error <= 1.01 * best_error(delta, 16)


def test_the_sketch_does_not_depend_on_anybody_elses_draws() -> None:
    delta = randn(500, 600, seed=1)
    torch.manual_seed(1)
    first, _ = factorise(delta, 8)
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    second, _ = factorise(delta, 8)
    assert torch.equal(first.a, second.a)
    assert torch.equal(first.b, second.b)
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)


@given(rank=RANKS, own=st.integers(1, 20), seed=SEEDS)
@settings(max_examples=50)
def test_a_pair_is_cut_without_forming_it(rank: int, own: int, seed: int) -> None:
    pair = LowRank(randn(own, IN, seed=seed, dtype=torch.bfloat16), randn(OUT, own, seed=seed + 1), -1.5)
    cut, error = truncate(pair, rank)
    assert cut.rank == min(rank, own, IN)
    assert error == pytest.approx(true_error(product(pair), cut), rel=1e-3, abs=1e-6)
    assert error == pytest.approx(best_error(product(pair), rank), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("zero", [torch.zeros(OUT, IN), torch.zeros(500, 600)])
def test_nothing_is_approximated_by_nothing(zero: Tensor) -> None:
    pair, error = factorise(zero, 4)
    assert error == 0.0
    assert not product(pair).any()
    cut, error = truncate(LowRank(randn(4, IN, seed=1), torch.zeros(OUT, 4), 1.0), 2)
    assert error == 0.0
    assert not product(cut).any()


def test_a_rank_below_one_is_a_mistake() -> None:
    for act in (
        lambda: factorise(torch.ones(2, 2), 0),
        lambda: truncate(LowRank(torch.ones(1, 2), torch.ones(2, 1), 1), 0),
    ):
        with pytest.raises(ValueError, match="rank of 0"):
            act()
