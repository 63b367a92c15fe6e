"""Sums over adapters' weights by the compiled kernels against fp64."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.kernels_under_test import only_native
from livery.engine.kernels import describe, load_sums, use_threads_here
from livery.engine.kernels.measure import NativeSums
from livery_adapters.canonical import LowRank
from livery_adapters.measure import low_rank_norms
from livery_adapters.sums import Sums, TorchSums


@pytest.fixture(params=["native", "torch"])
def sums(request: pytest.FixtureRequest) -> Sums:
    found: Sums = load_sums("auto" if request.param == "native" else "torch")
    assert isinstance(found, NativeSums if request.param == "native" else TorchSums), describe()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_squares_of_every_size(sums: Sums, dtype: torch.dtype) -> None:
    tensors = [torch.randn(size, generator=seeded(size)).to(dtype) for size in (0, 1, 15, 64, 67, 4096, 9001)]
    assert sums.squares(tensors) == pytest.approx([float(t.double().square().sum()) for t in tensors], rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 63, 64, 4999])
def test_no_number_is_overlooked(sums: Sums, value: float, at: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        bad, good = torch.ones(5000, dtype=dtype), torch.ones(5000, dtype=dtype)
        bad[at] = value
        found = sums.squares([good, bad])
        assert [math.isfinite(one) for one in found] == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rank", "inputs", "outputs"), [(1, 1, 1), (3, 65, 7), (8, 64, 129), (16, 33, 300), (37, 576, 192), (128, 200, 96)]
)
def test_norms_of_products(sums: Sums, dtype: torch.dtype, rank: int, inputs: int, outputs: int) -> None:
    pairs = [made(rank, inputs, outputs, dtype, seed) for seed in range(3)]
    pairs.append(made(2, 5, 9, dtype, 4))  # one pass takes pairs of any shape
    assert low_rank_norms(pairs, sums) == pytest.approx([exact(pair) for pair in pairs], rel=1e-4)


@pytest.mark.parametrize("lay_out", [lambda b: b.t().contiguous().t(), lambda b: b.half(), lambda b: b[:, ::2]])
def test_what_the_kernels_are_not_made_for(lay_out: Callable[[Tensor], Tensor]) -> None:
    """Mixed types, and memory that isn't in order."""
    pair = made(16, 40, 30, torch.float32, 1)
    b = lay_out(pair.b)
    odd = LowRank(pair.a[: b.shape[1]], b, 2.0)
    assert low_rank_norms([pair, odd], load_sums()) == pytest.approx([exact(pair), exact(odd)], rel=1e-3)


def test_products_that_leave_the_range_of_fp32(sums: Sums) -> None:
    large = LowRank(torch.full((2, 8), 1e12), torch.full((8, 2), 1e12), 1.0)
    small = LowRank(torch.full((2, 8), 1e-15), torch.full((8, 2), 1e-15), 1.0)
    assert low_rank_norms([large, small], sums) == pytest.approx([1.6e25, 1.6e-29], rel=1e-4)


def made(rank: int, inputs: int, outputs: int, dtype: torch.dtype, seed: int) -> LowRank:
    generator = seeded(seed)
    a, b = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
    return LowRank(a.to(dtype), b.to(dtype), 0.5)


def exact(pair: LowRank) -> float:
    return float((pair.b.double() @ pair.a.double()).norm() * pair.scale)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@only_native
def test_a_thread_of_its_own_number_of_threads() -> None:
    """Also the first time that the thread computes, and without a word to others."""
    before, found = torch.get_num_threads(), []

    def work() -> None:
        use_threads_here(before + 2)
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before + 2]
    assert torch.get_num_threads() == before
