"""The leading part of a matrix: as good as the best there is, of the lowest rank that is enough, told as it is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from livery_adapters.approximate import OVERSAMPLED, randomised_svd
from livery_adapters.making import extract_spectrum
from livery_adapters.making.extract_spectrum import Leading, leading

SIDES = st.integers(1, 60)


def with_spectrum(out: int, ins: int, values: Tensor, seed: int) -> Tensor:
    """A matrix [out, ins], fp32, with these singular values and random directions."""
    generator = torch.Generator().manual_seed(seed)
    count = len(values)
    left, right = (
        torch.linalg.qr(torch.randn(side, count, generator=generator, dtype=torch.float64)).Q for side in (out, ins)
    )
    return (left * values.double() @ right.T).float()


def true_error(delta: Tensor, found: Leading) -> float:
    product = found.pair.b.double() @ found.pair.a.double()
    return float((delta.double() - product).norm() / delta.double().norm())


def decaying(kind: str, count: int) -> Tensor:
    steps = torch.arange(1, count + 1, dtype=torch.float64)
    return {"slow": steps**-0.5, "fast": 0.7**steps, "flat": torch.ones_like(steps)}[kind]


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(SIDES, SIDES, st.integers(0, 9)),
    st.sampled_from(["slow", "fast", "flat"]),
    st.floats(0.0, 0.9),
    st.integers(1, 60),
)
def test_the_rank_is_the_lowest_that_is_enough(shape: tuple[int, int, int], kind: str, error: float, most: int) -> None:
    out, ins, seed = shape
    values = decaying(kind, min(out, ins))
    delta = with_spectrum(out, ins, values, seed)
    found = leading(delta, most, error)
    rank = found.pair.rank
    assert rank <= min(most, out, ins)
    assert found.pair.a.shape == (rank, ins)
    assert found.pair.b.shape == (out, rank)
    assert found.error == pytest.approx(true_error(delta, found), abs=1e-5)
    best = [float(values[n:].norm() / values.norm()) for n in range(len(values) + 1)]  # by Eckart and Young
    assert found.error == pytest.approx(best[rank], rel=1e-3, abs=2e-6)
    assert found.reached == (found.error <= error + 2e-6) or abs(best[rank] - error) < 1e-5
    if rank > 1:
        assert best[rank - 1] > error - 1e-5, "a lower rank would have been enough"
    assert found.norm == pytest.approx(float(values.norm()), rel=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(["slow", "fast"]), st.integers(1, 24), st.booleans(), st.integers(0, 9))
def test_a_randomised_decomposition_is_within_its_bound(kind: str, rank: int, turned: bool, seed: int) -> None:
    """Halko, Martinsson and Tropp, theorem 10.5: E‖A - QQᵀA‖_F <= √(1 + k/(p - 1)) · √(Σ_{j>k} σ_j²), before any
    power iteration makes it smaller; and never below the best."""
    values = decaying(kind, 90)
    delta = with_spectrum(140, 90, values, seed)
    delta = delta.T.contiguous() if turned else delta
    left, _, _ = randomised_svd(delta, rank + OVERSAMPLED)
    outside = float((delta - left @ (left.T @ delta)).double().norm())
    assert outside <= math.sqrt(1 + rank / (OVERSAMPLED - 1)) * float(values[rank:].norm())
    assert outside >= 0.999 * float(values[rank + OVERSAMPLED :].norm()) - 1e-5


@pytest.mark.parametrize("error", [0.0, 0.1, 0.5, 0.7])
def test_a_large_matrix_is_searched_for_its_rank(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for one with thousands of rows, at a size that a test can check."""
    monkeypatch.setattr(extract_spectrum, "_EXACT", 8)
    monkeypatch.setattr(extract_spectrum, "_FIRST", 4)
    values = decaying("slow", 300)
    delta = with_spectrum(400, 300, values, seed=1)
    found = leading(delta, 40, error)
    best = [float(values[n:].norm() / values.norm()) for n in range(301)]
    needed = next((n for n in range(1, 41) if best[n] <= error), 40)
    assert abs(found.pair.rank - needed) <= 1  # a basis that holds nearly as much may need one more
    assert found.error == pytest.approx(true_error(delta, found), abs=1e-5)
    assert found.error <= 1.02 * best[found.pair.rank]
    assert found.reached == (found.error <= error + 1e-6)


def test_rounding_costs_no_rank() -> None:
    delta = with_spectrum(50, 40, torch.tensor([3.0, 2.0, 1.0]), seed=2)
    found = leading(delta, 40, 0.0)
    assert found.pair.rank == 3
    assert found.reached
    assert found.error < 1e-6


def test_halves_in_half_precision_tell_their_own_error() -> None:
    delta = with_spectrum(50, 40, torch.tensor([3.0, 2.0, 1.0]), seed=2)
    found = leading(delta, 40, 0.0, torch.bfloat16)
    assert found.pair.a.dtype == found.pair.b.dtype == torch.bfloat16
    assert 1e-4 < found.error < 1e-2
    assert found.error == pytest.approx(true_error(delta, found), rel=1e-3)


def test_the_same_matrix_gives_the_same_pair() -> None:
    delta = with_spectrum(50, 40, decaying("slow", 40), seed=2)
    one, other = leading(delta, 10, 0.1), leading(delta.clone(), 10, 0.1)
    assert torch.equal(one.pair.a, other.pair.a)
    assert torch.equal(one.pair.b, other.pair.b)
